package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// ErrElsewhere is returned for pods whose processes this machine does not see: the node is another machine, or they have ended.
var ErrElsewhere = errors.New("no process of the pod is visible on this machine")

// Pods returns the pods of a namespace, or of all with "", that a selector matches.
func (c *Cluster) Pods(ctx context.Context, namespace, selector string) ([]corev1.Pod, error) {
	where := []string{"-n", namespace}
	if namespace == "" {
		where = []string{"-A"}
	}
	out, err := c.Run(ctx, "", append([]string{"get", "pods", "-l", selector, "-o", "json"}, where...)...)
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("get pods -o json: %w", err)
	}
	return list.Items, nil
}

// NetNS is the path of a pod's network namespace: the sandbox's file, or that of one of the pod's processes.
func (c *Cluster) NetNS(pod *corev1.Pod) (string, error) {
	if c.Kubernetes() {
		pids, err := c.Processes(pod, "")
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("/proc/%d/ns/net", pids[0]), nil
	}
	for _, pattern := range []string{"netns", "*/netns"} {
		found, err := filepath.Glob(filepath.Join(c.Sandbox, pattern, string(pod.UID)))
		if err != nil {
			return "", err
		}
		if len(found) == 1 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("pod %s/%s has no network namespace under %s: %w", pod.Namespace, pod.Name, c.Sandbox, ErrElsewhere)
}

// Processes returns the PIDs of a pod's processes that run a program; of all of them when
// program is empty. There is at least one when the error is nil.
func (c *Cluster) Processes(pod *corev1.Pod, program string) ([]int, error) {
	belongs, err := c.belongs(pod)
	if err != nil {
		return nil, err
	}
	pids, err := processes(program, belongs)
	if err != nil {
		return nil, err
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("pod %s/%s, program %q: %w", pod.Namespace, pod.Name, program, ErrElsewhere)
	}
	return pids, nil
}

// processes returns the PIDs whose program has that name (any, when empty) and whose directory of /proc is chosen.
func processes(program string, chosen func(dir string) bool) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range entries {
		// Processes end while we look; those are not what is looked for.
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil || (program != "" && strings.TrimSpace(string(comm)) != program) || !chosen(dir) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// belongs tells whether the process of a directory of /proc is one of the pod: by its
// network namespace in the sandbox, by kubelet's cgroup of the pod on Kubernetes.
func (c *Cluster) belongs(pod *corev1.Pod) (func(dir string) bool, error) {
	if c.Kubernetes() {
		uid := string(pod.UID)
		systemd := strings.ReplaceAll(uid, "-", "_") // the spelling of the systemd driver
		return func(dir string) bool {
			text, err := os.ReadFile(filepath.Join(dir, "cgroup"))
			return err == nil && (strings.Contains(string(text), "pod"+uid) || strings.Contains(string(text), "pod"+systemd))
		}, nil
	}
	path, err := c.NetNS(pod)
	if err != nil {
		return nil, err
	}
	want, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	return func(dir string) bool {
		ns, err := os.Stat(filepath.Join(dir, "ns/net"))
		return err == nil && os.SameFile(ns, want)
	}, nil
}

// Kill sends a signal to every process of a pod that runs the program.
func (c *Cluster) Kill(pod *corev1.Pod, program string, sig syscall.Signal) error {
	pids, err := c.Processes(pod, program)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
			return fmt.Errorf("%s (PID %d) of pod %s/%s: %w", program, pid, pod.Namespace, pod.Name, err)
		}
	}
	return nil
}
