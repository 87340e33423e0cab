// Package mesh knows what the user said: services, endpoints, workloads and the
// configuration kinds of Istio's API, together with Istio's rules of precedence
// between them. A [Store] is fed Kubernetes and Istio objects and gives out
// immutable [Snapshot] values; everything later (envoy, xds) reads only those.
//
// The package never talks to an API server or to a file (mesh/kube and mesh/files
// do, and feed a Store), never knows what a proxy is told, and keeps no raw Kubernetes
// object: they are converted to the lean model of model.go at the door.
//
// Open model.go first, then snapshot.go for the questions that can be asked, then
// store.go for how the answers are kept. Each rule of precedence has its own file:
// virtualservice.go, destinationrule.go, gateway.go, peerauthentication.go,
// visibility.go (exportTo), host.go (short names and wildcards), protocol.go.
package mesh
