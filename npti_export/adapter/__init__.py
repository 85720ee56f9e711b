"""The artefact: a small folder of safetensors files and a config that holds personalities without any weights."""
