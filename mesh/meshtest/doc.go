// Package meshtest makes up histories of a mesh: random changes of random objects, in which names, hosts and labels meet as often as they can.
//
// Everything in weft is derived step by step from what it was before, and must come out as if it were derived from nothing. Tests at each level
// (mesh, envoy, weftd) replay the same histories, compare the two, and let [Shortest] tell what it took to make them differ.
package meshtest
