"""What search.py imports within a function."""


def first_title(found) -> str:
    return found["result"][0][0]["document"]["contents"].partition("\n")[0]
