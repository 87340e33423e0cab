package mesh

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	statusAnnotation = "sidecar.istio.io/status"
	tlsModeLabel     = "security.istio.io/tlsMode"
	localityLabel    = "istio-locality"
)

// workloadOf converts a Pod. It returns nil for a pod that has finished: its address may belong
// to another pod already.
func workloadOf(in *corev1.Pod, meta Meta, nodes map[string]Locality) *Workload {
	if in.Status.Phase == corev1.PodSucceeded || in.Status.Phase == corev1.PodFailed {
		return nil
	}
	w := &Workload{
		Meta:           meta,
		ServiceAccount: in.Spec.ServiceAccountName,
		Node:           in.Spec.NodeName,
		HostNetwork:    in.Spec.HostNetwork,
		Terminating:    in.DeletionTimestamp != nil,
		Injected:       injected(in),
		discovery:      chosenDiscovery(meta.Annotations),
	}
	if w.ServiceAccount == "" {
		w.ServiceAccount = "default"
	}
	w.Addresses = podAddresses(in)
	w.Locality = workloadLocality(w, nodes)
	w.Owner, w.OwnerKind = owner(&in.ObjectMeta)
	name := func(containers []corev1.Container) {
		for _, c := range containers {
			for _, p := range c.Ports {
				if p.Name == "" || p.ContainerPort == 0 {
					continue
				}
				if w.ContainerPorts == nil {
					w.ContainerPorts = map[string]uint16{}
				}
				if _, taken := w.ContainerPorts[p.Name]; !taken {
					w.ContainerPorts[p.Name] = uint16(p.ContainerPort)
				}
			}
		}
	}
	name(in.Spec.Containers)
	var sidecars []corev1.Container
	for _, c := range in.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			sidecars = append(sidecars, c)
		}
	}
	name(sidecars)
	return w
}

func podAddresses(in *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil && !slices.Contains(out, a.Unmap()) {
			out = append(out, a.Unmap())
		}
	}
	add(in.Status.PodIP)
	for _, ip := range in.Status.PodIPs {
		add(ip.IP)
	}
	return out
}

// injected reports whether the pod has a sidecar that terminates mesh TLS. The label says so for
// its peers (and may say "disabled"); the annotation is what the injector leaves behind.
func injected(in *corev1.Pod) bool {
	if mode, ok := in.Labels[tlsModeLabel]; ok {
		return mode == "istio"
	}
	_, ok := in.Annotations[statusAnnotation]
	return ok
}

// workloadLocality is that of the label istio-locality ("region.zone.subzone", or with slashes),
// otherwise of the node.
func workloadLocality(w *Workload, nodes map[string]Locality) Locality {
	if l := w.Labels[localityLabel]; l != "" {
		return parseLocality(l)
	}
	return nodes[w.Node]
}

func parseLocality(s string) Locality {
	if !strings.Contains(s, "/") {
		s = strings.ReplaceAll(s, ".", "/")
	}
	parts := append(strings.SplitN(s, "/", 3), "", "")
	return Locality{parts[0], parts[1], parts[2]}
}

// nodeLocality reads a node's topology labels, the old names too.
func nodeLocality(labels map[string]string) Locality {
	first := func(keys ...string) string {
		for _, k := range keys {
			if v := labels[k]; v != "" {
				return v
			}
		}
		return ""
	}
	return Locality{
		Region:  first("topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"),
		Zone:    first("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"),
		SubZone: first("topology.istio.io/subzone"),
	}
}

var cronJobRun = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// owner names the controller a user thinks of. A ReplicaSet stands for its Deployment: its name
// without the pod-template-hash; a Job made by a CronJob stands for the CronJob (its name ends in the time of the
// run); a pod without a controller stands for itself.
func owner(pod *metav1.ObjectMeta) (name, kind string) {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return pod.Name, "Pod"
	}
	switch ref.Kind {
	case "ReplicaSet":
		if hash := pod.Labels["pod-template-hash"]; hash != "" {
			if n, ok := strings.CutSuffix(ref.Name, "-"+hash); ok {
				return n, "Deployment"
			}
		}
	case "ReplicationController":
		if dc := pod.Labels["deploymentconfig"]; dc != "" { // OpenShift
			return dc, "DeploymentConfig"
		}
	case "Job":
		if m := cronJobRun.FindStringSubmatch(ref.Name); m != nil {
			return m[1], "CronJob"
		}
	}
	return ref.Name, ref.Kind
}
