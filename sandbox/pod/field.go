package pod

import (
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// field is the value of a downward API field of the pod (Kubernetes API: ObjectFieldSelector; as variable and in files).
func (w *worker) field(path string) (string, error) {
	pod := w.latest.Load()
	if name, key, ok := subscript(path); ok {
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		if pod.Spec.NodeName != "" {
			return pod.Spec.NodeName, nil
		}
		return w.r.cfg.Node.Name, nil
	case "spec.serviceAccountName":
		return serviceAccount(pod), nil
	case "status.hostIP":
		return first(w.hostIPs()), nil
	case "status.hostIPs":
		return strings.Join(w.hostIPs(), ","), nil
	case "status.podIP":
		return first(w.podIPs()), nil
	case "status.podIPs":
		return strings.Join(w.podIPs(), ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %s", path)
}

// subscript splits name['key'].
func subscript(path string) (name, key string, ok bool) {
	name, rest, ok := strings.Cut(path, "['")
	if !ok || !strings.HasSuffix(rest, "']") {
		return "", "", false
	}
	return name, strings.TrimSuffix(rest, "']"), true
}

// formatMap is the format of labels and annotations in downwardAPI files.
func formatMap(m map[string]string) string {
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&out, "%s=%q\n", key, m[key])
	}
	return strings.TrimSuffix(out.String(), "\n")
}

func serviceAccount(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName != "" {
		return pod.Spec.ServiceAccountName
	}
	return "default"
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

func (w *worker) podIPs() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ips)
}

func (w *worker) hostIPs() []string {
	var out []string
	for _, ip := range w.r.cfg.Node.addresses() {
		out = append(out, ip.String())
	}
	return out
}

// hostname follows kubelet: spec.hostname or the pod's name, at most 63 characters; the node's on the host's network.
func (w *worker) hostname() string {
	name := w.pod.Spec.Hostname
	if name == "" {
		name = w.pod.Name
	}
	if w.pod.Spec.HostNetwork && w.r.cfg.Node.Name != "" {
		name = w.r.cfg.Node.Name
	}
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}

// resource is the value of a downward API resource field. A missing limit means the machine's size, a missing request 0.
func (w *worker) resource(ref *corev1.ResourceFieldSelector, container string) (string, error) {
	if ref.ContainerName != "" {
		container = ref.ContainerName
	}
	var r *corev1.ResourceRequirements
	for _, c := range w.every() {
		if c.spec.Name == container {
			r = &c.spec.Resources
		}
	}
	if r == nil {
		return "", fmt.Errorf("resourceFieldRef: container %s not found", container)
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	var list corev1.ResourceList
	switch kind {
	case "limits":
		list = r.Limits
	case "requests":
		list = r.Requests
	default:
		return "", fmt.Errorf("unsupported resource: %s", ref.Resource)
	}
	quantity, ok := list[corev1.ResourceName(name)]
	if !ok && kind == "requests" {
		// The API server defaults a request to the limit.
		quantity, ok = r.Limits[corev1.ResourceName(name)]
	}
	if !ok && kind == "limits" {
		quantity = capacity(corev1.ResourceName(name))
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	switch corev1.ResourceName(name) {
	case corev1.ResourceCPU:
		return strconv.FormatInt(int64(math.Ceil(float64(quantity.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	case corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return strconv.FormatInt(int64(math.Ceil(float64(quantity.Value())/float64(divisor.Value()))), 10), nil
	}
	return "", fmt.Errorf("unsupported resource: %s", ref.Resource)
}

func capacity(name corev1.ResourceName) resource.Quantity {
	switch name {
	case corev1.ResourceCPU:
		return *resource.NewQuantity(int64(runtime.NumCPU()), resource.DecimalSI)
	case corev1.ResourceMemory:
		return *resource.NewQuantity(memory(), resource.BinarySI)
	}
	return resource.Quantity{}
}
