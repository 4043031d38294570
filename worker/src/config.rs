//! The program's flags and variables, checked once at start.
