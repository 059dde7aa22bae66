"""The sandbox's own processes: a warden, which builds the walls and dies with its owner; a zygote,
a warm Python within the walls; and for every call a fork of it, which runs the program."""
