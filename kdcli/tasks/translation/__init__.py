"""The task whose students turn an image into another one."""
