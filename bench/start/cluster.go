package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

const (
	namespace = "weft-bench-start"
	// patience with one pod: far above what any gate takes.
	patience = 60 * time.Second
)

type cluster struct {
	client *kubernetes.Clientset
	image  string
}

// start is how long one pod took, from the moment before the request.
type start struct{ admitted, app, ready time.Duration }

// open makes the namespace, which is the same for pods with and without the mesh.
func (c cluster) open(ctx context.Context) error {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{
		"istio-injection": "enabled", "pod-security.kubernetes.io/enforce": "restricted",
	}}}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	// Pods are refused until the controllers have made these two.
	return poll(ctx, func() error {
		if _, err := c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := c.client.CoreV1().ConfigMaps(namespace).Get(ctx, "istio-ca-root-cert", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("%w: is the mesh installed? (weft verify-install)", err)
		}
		return err
	})
}

func (c cluster) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return c.client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
}

func poll(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c cluster) pod(gate string, i int) *corev1.Pod {
	yes, no, user := true, false, int64(1000)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("%s-%d", gate, i), Labels: map[string]string{"app": "start"}, Annotations: map[string]string{},
		},
		Spec: corev1.PodSpec{
			Containers: []corev1.Container{{
				Name: "app", Image: c.image, ImagePullPolicy: corev1.PullIfNotPresent,
				SecurityContext: &corev1.SecurityContext{
					RunAsUser: &user, RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
					Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
					SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
			}},
		},
	}
	switch gate {
	case "none", "second":
		p.Labels["sidecar.istio.io/inject"] = "false"
	case "ungated":
		p.Annotations["weft.dev/start-gate"] = "hook"
	default:
		p.Annotations["weft.dev/start-gate"] = gate
	}
	if gate == "second" {
		sidecar, always := p.Spec.Containers[0], corev1.ContainerRestartPolicyAlways
		sidecar.Name, sidecar.RestartPolicy = "second", &always
		p.Spec.InitContainers = []corev1.Container{sidecar}
	}
	return p
}

// ungated is the pod as the mesh injects it, but that nothing waits for its proxy.
func (c cluster) ungated(ctx context.Context, p *corev1.Pod) (*corev1.Pod, error) {
	made, err := c.client.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, err
	}
	made.ObjectMeta = metav1.ObjectMeta{Name: made.Name, Labels: made.Labels, Annotations: made.Annotations}
	made.Labels["sidecar.istio.io/inject"] = "false"
	for i := range made.Spec.InitContainers {
		proxy := &made.Spec.InitContainers[i]
		proxy.Lifecycle, proxy.StartupProbe, proxy.ReadinessProbe = nil, nil, nil
	}
	return made, nil
}

// start creates one pod, waits until it is Ready, and removes it again.
func (c cluster) start(ctx context.Context, gate string, i int) (s start, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pod := c.pod(gate, i)
	if gate == "ungated" {
		if pod, err = c.ungated(ctx, pod); err != nil {
			return s, err
		}
	}
	pods := c.client.CoreV1().Pods(namespace)
	w, err := pods.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", pod.Name).String()})
	if err != nil {
		return s, err
	}
	defer w.Stop()
	began := time.Now()
	made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return s, err
	}
	s.admitted = time.Since(began)
	defer func() { err = errors.Join(err, c.remove(context.WithoutCancel(ctx), pod.Name, w)) }()
	injected := slices.ContainsFunc(made.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "istio-proxy" })
	if injected == (gate == "none" || gate == "second") {
		return s, fmt.Errorf("injected: %v; is the mesh installed? (weft verify-install)", injected)
	}
	var last *corev1.Pod
	for {
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("not Ready after %v: %s", patience, state(last))
		case e, ok := <-w.ResultChan():
			p, isPod := e.Object.(*corev1.Pod)
			if !ok || !isPod {
				return s, fmt.Errorf("the watch ended: %v", e.Object)
			}
			last = p
			if s.app == 0 && slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.State.Running != nil }) {
				s.app = time.Since(began)
			}
			if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
			}) {
				s.ready = time.Since(began)
				return s, nil
			}
		}
	}
}

// remove waits until the pod is gone: the next one should not start beside its end.
func (c cluster) remove(ctx context.Context, name string, w watch.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	now := int64(1)
	if err := c.client.CoreV1().Pods(namespace).Delete(ctx, name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s is still there after %v", name, patience)
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				// The watch ended with the context that it was made with.
				return poll(ctx, func() error {
					_, err := c.client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
					if apierrors.IsNotFound(err) {
						return nil
					}
					return errors.Join(err, fmt.Errorf("pod %s is still there", name))
				})
			}
			if e.Type == watch.Deleted {
				return nil
			}
		}
	}
}

// state is what a person would look at.
func state(p *corev1.Pod) string {
	if p == nil {
		return "nothing was heard of it"
	}
	text := string(p.Status.Phase)
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range list {
			switch {
			case c.State.Waiting != nil:
				text += fmt.Sprintf("; %s waits: %s %s", c.Name, c.State.Waiting.Reason, c.State.Waiting.Message)
			case c.State.Terminated != nil:
				text += fmt.Sprintf("; %s ended: %s %s", c.Name, c.State.Terminated.Reason, c.State.Terminated.Message)
			case !c.Ready:
				text += fmt.Sprintf("; %s runs and is not ready", c.Name)
			}
			if t := c.LastTerminationState.Terminated; t != nil {
				text += fmt.Sprintf(" (before: %s %s)", t.Reason, t.Message)
			}
		}
	}
	return text
}
