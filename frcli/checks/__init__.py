"""What is looked at in a file of anybody's before a C library is given it, because that would crash or never end."""
