package pod

import "github.com/weft-mesh/weft/sandbox/pod/inside"

// Init must be the first call of main in a program that uses a Runner: containers begin as a copy of the calling
// program named "weft-container". It returns at once in every other process. (In that one main is not even reached:
// package inside takes over while the program initialises, see there. The call states the dependency.)
func Init() { inside.Main() }
