"""Publish a classifier as a repository of the Hugging Face Hub."""

from keras_resnext.share.push import check_target as check_target
from keras_resnext.share.push import push_to_hub as push_to_hub
