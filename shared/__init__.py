"""What every room of Deltaguard stands on: plain values, inspection, storage and the protocols over them."""
