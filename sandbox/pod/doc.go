// Package pod runs Kubernetes pods on one Linux machine, as root, without a container runtime: it is kubelet and
// runtime in one, small and faithful where a user of Kubernetes would notice.
//
// It knows one pod at a time: its network namespace and CNI chain (sandbox.go, cni.go), its volumes (volumes.go), the
// order in which init containers, native sidecars and containers start and stop (worker.go), restarts and their
// back-off (container.go), probes (prober.go), hooks, logs, exec and the PodStatus that results (status.go). What a
// process does between its first instruction and the image's program is package inside.
//
// It never talks to an API server, schedules nothing, pulls no image (an image is mapped to a program of this host)
// and limits neither CPU nor memory. Differences from kubelet that a user could meet are listed at Runner.
//
// Open config.go first for what goes in and comes out, then worker.go for the life of a pod.
package pod
