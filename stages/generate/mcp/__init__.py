"""Tools of servers of the Model Context Protocol, by the package `mcp`."""
