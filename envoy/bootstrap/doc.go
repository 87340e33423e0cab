// Package bootstrap writes the configuration that an Envoy starts with: who it is, how it reaches the control plane, and the
// few listeners that must answer before (and without) any configuration from there: health, metrics and the app's probes.
//
// It is a pure function from Settings (one per mesh) and Params (one per pod) to one line of JSON that fits into one process
// argument. Everything that differs between the pods of a Deployment stays a $(VARIABLE) that kubelet fills in from the
// container's environment. It never reads a file, a clock or the network, and it knows nothing of Kubernetes objects.
//
// Start with bootstrap.go; probes.go is how the app's probes are answered under STRICT mTLS.
package bootstrap
