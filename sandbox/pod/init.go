package pod

// Init must be the first call of main in a program that uses a Runner: containers begin as a copy of the calling
// program named "weft-container". It returns at once in every other process and never in that one.
func Init() {}
