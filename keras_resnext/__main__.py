"""`python -m keras_resnext` is the command `keras-resnext`."""

from keras_resnext.cli import main

main()
