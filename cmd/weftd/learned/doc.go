// Package learned keeps what workloads have asked for (envoy.Demand) beyond the life of their proxies and of the control plane, and tells it to other replicas: new pods of
// a workload then have everything at their start that their sisters ever needed, also after the whole mesh was restarted at once.
//
// The record is an aid and never a condition: without it a pod's first request to a host takes a few milliseconds more. So what cannot be read is dropped and
// written anew, and what cannot be written is tried again later; proxies do not notice. Names in it come from apps: they are values, bounded in length and number,
// and mean nothing until [envoy.World] finds something in the mesh for them.
//
// Open keeper.go first; record.go is the format. A Store is where the record is: [Dir], or ConfigMaps (package cluster).
package learned
