"""The command line: a file a command, and each parses, calls and prints."""

from keras_resnext.cli.app import main as main
