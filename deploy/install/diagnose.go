package install

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// NotReady is why an installation did not become ready, in a form that people read.
type NotReady struct{ Lines []string }

// Error gives all lines.
func (n *NotReady) Error() string { return "not ready:\n  " + strings.Join(n.Lines, "\n  ") }

// remedies by the reason that kubelet or the scheduler gives.
var remedies = map[string]string{
	"ErrImagePull":               "the image cannot be pulled: check global.hub and global.tag, pull secrets (global.imagePullSecrets), and whether nodes reach the registry",
	"ImagePullBackOff":           "the image cannot be pulled: check global.hub and global.tag, pull secrets (global.imagePullSecrets), and whether nodes reach the registry",
	"ErrImageNeverPull":          "the image is not on the node and may not be pulled (imagePullPolicy Never): load it, for example \"ctr -n k8s.io images import bin/images/weft.tar\" or \"kind load image-archive\"",
	"InvalidImageName":           "global.hub or global.tag makes an image name that is none",
	"CrashLoopBackOff":           "the program ends at once; its last lines are below",
	"CreateContainerConfigError": "something that the container refers to (Secret, ConfigMap) is missing",
	"Unschedulable":              "no node takes the pod: lower the requests (components.pilot.k8s.resources), add tolerations, or add nodes",
}

// diagnose finds out why objects are not ready. It has its own, short patience: the user waited long enough.
func (c *Cluster) diagnose(open []unready) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	out := &NotReady{}
	for _, u := range open {
		out.Lines = append(out.Lines, u.object.String()+": "+u.why)
		if u.pods == nil {
			if strings.Contains(u.object.Kind, "WebhookConfiguration") {
				out.Lines = append(out.Lines, "  look at the control plane's log: kubectl logs -l app=istiod -n "+DefaultNamespace)
			}
			continue
		}
		for _, line := range c.podTroubles(ctx, u) {
			out.Lines = append(out.Lines, "  "+line)
		}
	}
	return out
}

// podTroubles looks at the pods of a workload.
func (c *Cluster) podTroubles(ctx context.Context, u unready) []string {
	ns := u.object.Namespace
	list, err := c.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(u.pods)})
	if err != nil {
		return []string{"its pods cannot be read: " + err.Error()}
	}
	if len(list.Items) == 0 {
		return append([]string{"it has no pods"}, c.workloadTroubles(ctx, u)...)
	}
	var out []string
	for _, pod := range list.Items {
		if ready(&pod) || len(out) > 20 {
			continue
		}
		where := ""
		if pod.Spec.NodeName != "" {
			where = " on node " + pod.Spec.NodeName
		}
		out = append(out, fmt.Sprintf("pod %s%s: %s", pod.Name, where, c.podTrouble(ctx, &pod)))
		for _, e := range c.warnings(ctx, ns, "Pod", pod.Name) {
			out = append(out, "  event "+e)
		}
	}
	return out
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// podTrouble says why a pod is not ready: scheduler, image, crash, probe, in this order.
func (c *Cluster) podTrouble(ctx context.Context, pod *corev1.Pod) string {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodScheduled && cond.Status == corev1.ConditionFalse {
			return cond.Message + "; " + remedies["Unschedulable"]
		}
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "PodInitializing" && w.Reason != "ContainerCreating" {
			text := fmt.Sprintf("container %s: %s", s.Name, w.Reason)
			if w.Message != "" {
				text += ": " + firstLine(w.Message)
			}
			if r := remedies[w.Reason]; r != "" {
				text += "; " + r
			}
			return text + c.lastWords(ctx, pod, s)
		}
		if t := s.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("container %s ended with status %d (%s)%s", s.Name, t.ExitCode, t.Reason, c.lastWords(ctx, pod, s))
		}
		if s.State.Running != nil && !s.Ready {
			return fmt.Sprintf("container %s runs since %s and is not ready%s", s.Name, time.Since(s.State.Running.StartedAt.Time).Round(time.Second), c.lastWords(ctx, pod, s))
		}
	}
	if pod.Status.Phase == corev1.PodPending {
		return "its containers are being made"
	}
	return strings.ToLower(string(pod.Status.Phase)) + " " + pod.Status.Message
}

// lastWords are the last lines that a container logged, and its termination message.
func (c *Cluster) lastWords(ctx context.Context, pod *corev1.Pod, s corev1.ContainerStatus) string {
	var out []string
	if t := s.LastTerminationState.Terminated; t != nil && t.Message != "" {
		out = append(out, firstLine(t.Message))
	}
	lines := int64(5)
	previous := s.RestartCount > 0 && s.State.Running == nil
	log, err := c.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Container: s.Name, TailLines: &lines, Previous: previous}).Stream(ctx)
	if err == nil {
		text, _ := io.ReadAll(io.LimitReader(log, 8<<10)) // what was read before an error is worth showing
		log.Close()
		for line := range strings.Lines(string(text)) {
			out = append(out, strings.TrimRight(line, "\r\n"))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "\n      log: " + strings.Join(out, "\n      log: ")
}

// workloadTroubles explains a workload without pods: quota, admission.
func (c *Cluster) workloadTroubles(ctx context.Context, u unready) []string {
	var out []string
	for _, e := range c.warnings(ctx, u.object.Namespace, u.object.Kind, u.object.Name) {
		out = append(out, "event "+e)
	}
	if u.object.Kind != "Deployment" {
		return out
	}
	sets, err := c.AppsV1().ReplicaSets(u.object.Namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(u.pods)})
	if err != nil {
		return out
	}
	for _, rs := range sets.Items {
		for _, cond := range rs.Status.Conditions {
			if cond.Type == "ReplicaFailure" && cond.Status == corev1.ConditionTrue {
				out = append(out, cond.Message)
			}
		}
	}
	return out
}

// warnings are the events of an object, newest last, each once.
func (c *Cluster) warnings(ctx context.Context, ns, kind, name string) []string {
	list, err := c.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: fields.Set{"involvedObject.kind": kind, "involvedObject.name": name, "type": "Warning"}.String()})
	if err != nil {
		return nil
	}
	slices.SortFunc(list.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	var out []string
	for _, e := range list.Items {
		text := e.Reason + ": " + firstLine(e.Message)
		if !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	return out[max(0, len(out)-3):]
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
