// Package inside is what a container's process does between its first instruction and the image's program: it enters
// the pod's namespaces, builds the root file system, gives up what it must not have and executes the program in its
// place, so that the program is PID 1 as in any container.
//
// The code runs in a copy of the calling program under the name "weft-container", from this package's init function:
// Go initialises packages in the order of their import paths as soon as their own imports are, and this one imports
// nearly nothing (not even path or os/exec, which come late), so a container does not wait for the initialisation of the
// whole program around it, which takes 12 ms in weft. What is to be done arrives as a Spec on a file descriptor.
//
// It never decides anything: security contexts, volumes and the like are translated by package pod.
// Open spec.go first, then inside.go.
package inside
