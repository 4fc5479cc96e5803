"""Brain encoding and decoding models on the VECA backbone. The systems arrive one room at a time."""
