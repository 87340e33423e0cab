package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Node looks behind the API of a sandbox: at the processes and network namespaces of this machine.
type Node struct {
	StateDir string // of the sandbox: /run/weft/sandbox/NAME
}

// Pods returns the pods of a namespace that a selector matches.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	out, err := c.Run(ctx, "", "get", "pods", "-n", namespace, "-l", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("get pods -o json: %w", err)
	}
	return list.Items, nil
}

// NetNS is the path of a pod's network namespace.
func (n Node) NetNS(pod *corev1.Pod) (string, error) {
	for _, pattern := range []string{"netns", "*/netns"} {
		found, err := filepath.Glob(filepath.Join(n.StateDir, pattern, string(pod.UID)))
		if err != nil {
			return "", err
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("pod %s/%s has no network namespace under %s", pod.Namespace, pod.Name, n.StateDir)
}

// Processes returns the PIDs of a program in a pod's network namespace.
func (n Node) Processes(pod *corev1.Pod, program string) ([]int, error) {
	path, err := n.NetNS(pod)
	if err != nil {
		return nil, err
	}
	want, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range entries {
		// Processes end while we look; those are not what is looked for.
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != program {
			continue
		}
		if ns, err := os.Stat(filepath.Join(dir, "ns/net")); err == nil && os.SameFile(ns, want) {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
