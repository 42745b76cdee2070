"""Where a run happens: devices, hosts, interrupts, compilation."""
