// Package kube reads the mesh from a Kubernetes API server: it lists and watches
// what a [mesh.Store] takes in, and follows MeshConfig.discoverySelectors and the
// custom resource definitions of the mesh kinds as they come and go.
//
// There is no cache of objects here, and so no controller-runtime: reflectors feed the store directly. The store keeps its own, smaller form of what it
// is given, so an object is either in the mesh or, when its namespace is not
// selected, kept here; never both. What is always kept is the name of every object, which is
// how a deletion that happened while the watch was broken is noticed. With 1000 services of 5 pods, store
// and names are 17 MB; informers in front of the same store make it 30 MB (BenchmarkAThousandServices).
//
// It never writes to the API server. Open source.go first, then sink.go.
package kube
