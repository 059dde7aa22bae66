"""The environment of shop.py: a user who wants something, and a tool that looks into the shop."""

MAX_STEPS = 4


class Shop:
    rules = "You sell. Look for what the user wants, then say that it is there."

    def __init__(self, task: str) -> None:
        self.task, self.done, self.actions = task, False, []

    def reset(self) -> str:
        return f"I want this: {self.task}"

    def step(self, action: dict) -> tuple[str, str, bool]:
        """Who speaks next, what is said, and whether that was all: users who want an even number
        are content with the third answer."""
        self.actions.append(action["name"])
        self.done = len(self.actions) == 3 and int(self.task[0]) % 2 == 0
        role = "tool" if action["name"] == "look" else "user"
        return role, "here it is" if role == "tool" else "And?", self.done

    @property
    def reward(self) -> float:
        return float(self.done)
