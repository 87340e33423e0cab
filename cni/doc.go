// Package cni is the CNI plugin: it puts a pod's redirect.Spec into the kernel while the pod's network is being made, before any container runs.
//
// It speaks CNI 0.3.0 to 1.1.0 as the last plugin of a chain: ADD CHECK DEL STATUS GC VERSION. The Spec comes with the pod's annotations, which
// the container runtime hands over, so an ADD calls no API and, with nftables, starts no process. It never touches
// interfaces, addresses or routes of the pod, and gives the previous plugin's result back as it came. When it cannot know what a
// pod needs, ADD fails: a pod that does not start is seen, a pod that talks around the mesh is not.
//
// Start with add.go. conf.go documents the network configuration, agent.go the node agent's protocol, state.go what is remembered.
package cni
