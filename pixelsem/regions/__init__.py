"""Regions of an image: the methods that find them, and masks as regions."""
