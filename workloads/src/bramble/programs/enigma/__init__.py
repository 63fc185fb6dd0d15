"""The Enigma I (the navy's M3 is the same with these rotors), and the search for its setting from a known piece of text."""
