"""Models of timm, and networks that kdcli adds to it."""
