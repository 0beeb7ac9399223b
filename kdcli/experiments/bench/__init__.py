"""``kdcli bench``: what a training costs, measured on the training itself."""
