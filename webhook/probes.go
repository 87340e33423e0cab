package webhook

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/envoy/bootstrap"
)

// Kubelet's probes are sent to the proxy, which asks the app from inside the pod; see package bootstrap for why and how. The
// original handlers are kept, as Istio keeps them, in the proxy's environment variable ISTIO_KUBE_APP_PROBERS: people find
// them there, and so does a second call of the webhook on the same pod.
const envAppProbers = "ISTIO_KUBE_APP_PROBERS"

// prober is one original handler (Istio: status.Prober; the JSON is Istio's).
type prober struct {
	HTTPGet        *corev1.HTTPGetAction   `json:"httpGet,omitempty"`
	TCPSocket      *corev1.TCPSocketAction `json:"tcpSocket,omitempty"`
	GRPC           *corev1.GRPCAction      `json:"grpc,omitempty"`
	TimeoutSeconds int32                   `json:"timeoutSeconds,omitempty"`
}

// probeSite is a place in the pod where kubelet is told to ask the app.
type probeSite struct {
	path      string
	container *corev1.Container
	probe     *corev1.ProbeHandler     // nil for lifecycle hooks
	hook      *corev1.LifecycleHandler // nil for probes
	timeout   int32
}

// probeSites lists every HTTP, TCP and gRPC probe and HTTP hook of the pod's own containers that is aimed at the pod.
// skip names containers that are not the user's.
func probeSites(pod *corev1.Pod, skip func(container string) bool) []probeSite {
	var sites []probeSite
	visit := func(c *corev1.Container) {
		if skip(c.Name) {
			return
		}
		for _, p := range []struct {
			probe *corev1.Probe
			name  string
		}{{c.ReadinessProbe, "readyz"}, {c.LivenessProbe, "livez"}, {c.StartupProbe, "startupz"}} {
			if p.probe != nil && aimedAtPod(p.probe.HTTPGet, p.probe.TCPSocket, p.probe.GRPC) {
				sites = append(sites, probeSite{path: "/app-health/" + c.Name + "/" + p.name, container: c, probe: &p.probe.ProbeHandler, timeout: p.probe.TimeoutSeconds})
			}
		}
		if c.Lifecycle == nil {
			return
		}
		for _, h := range []struct {
			hook *corev1.LifecycleHandler
			name string
		}{{c.Lifecycle.PreStop, "prestopz"}, {c.Lifecycle.PostStart, "poststartz"}} {
			if h.hook != nil && aimedAtPod(h.hook.HTTPGet, nil, nil) {
				sites = append(sites, probeSite{path: "/app-lifecycle/" + c.Name + "/" + h.name, container: c, hook: h.hook})
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		// Only native sidecars have probes and hooks.
		visit(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		visit(&pod.Spec.Containers[i])
	}
	return sites
}

// aimedAtPod: a probe with a host of its own goes to that host, not to the pod, and is left alone.
func aimedAtPod(h *corev1.HTTPGetAction, t *corev1.TCPSocketAction, g *corev1.GRPCAction) bool {
	switch {
	case h != nil:
		return h.Host == ""
	case t != nil:
		return t.Host == ""
	}
	return g != nil
}

// probers gives the original handler of every site: from the pod, or, where an earlier call has rewritten it, from earlier.
// The error names container and probe.
func probers(sites []probeSite, earlier map[string]prober) (map[string]prober, error) {
	if len(sites) == 0 {
		return nil, nil
	}
	out := make(map[string]prober, len(sites))
	for _, s := range sites {
		p := prober{TimeoutSeconds: s.timeout}
		if s.probe != nil {
			p.HTTPGet, p.TCPSocket, p.GRPC = s.probe.HTTPGet, s.probe.TCPSocket, s.probe.GRPC
		} else {
			p.HTTPGet = s.hook.HTTPGet
		}
		if p.HTTPGet != nil && p.HTTPGet.Path == s.path && p.HTTPGet.Port.IntValue() == bootstrap.PortProbes {
			before, ok := earlier[s.path]
			if !ok {
				return nil, fmt.Errorf("container %s: its probe is already %s on port %d, but the proxy's %s does not say what it was; apply the pod as it was before injection",
					s.container.Name, s.path, bootstrap.PortProbes, envAppProbers)
			}
			out[s.path] = before
			continue
		}
		// Named ports are looked up now: the proxy knows no containers.
		if p.HTTPGet != nil {
			h := *p.HTTPGet
			port, err := portOf(h.Port, s)
			if err != nil {
				return nil, err
			}
			// The headers stay in kubelet's own request and pass through.
			h.Port, h.HTTPHeaders = intstr.FromInt32(port), nil
			p.HTTPGet = &h
		}
		if p.TCPSocket != nil {
			t := *p.TCPSocket
			port, err := portOf(t.Port, s)
			if err != nil {
				return nil, err
			}
			t.Port = intstr.FromInt32(port)
			p.TCPSocket = &t
		}
		out[s.path] = p
	}
	return out, nil
}

func portOf(p intstr.IntOrString, s probeSite) (int32, error) {
	n := p.IntVal
	if p.Type == intstr.String {
		for _, cp := range s.container.Ports {
			if cp.Name == p.StrVal {
				return cp.ContainerPort, nil
			}
		}
		if n = int32(p.IntValue()); n == 0 {
			return 0, fmt.Errorf("container %s: %s asks port %q, and the container has no port of that name", s.container.Name, probeName(s.path), p.StrVal)
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("container %s: %s asks port %d, which is not a port", s.container.Name, probeName(s.path), n)
	}
	return n, nil
}

// probeName is the pod's word for what the path serves.
func probeName(path string) string {
	switch path[strings.LastIndexByte(path, '/')+1:] {
	case "readyz":
		return "readinessProbe"
	case "livez":
		return "livenessProbe"
	case "startupz":
		return "startupProbe"
	case "prestopz":
		return "lifecycle.preStop"
	}
	return "lifecycle.postStart"
}

// rewrite points the site at the proxy. Handlers are replaced and not changed: they are shared with the original pod.
func (s probeSite) rewrite() {
	to := &corev1.HTTPGetAction{Path: s.path, Port: intstr.FromInt32(bootstrap.PortProbes), Scheme: corev1.URISchemeHTTP}
	if s.probe != nil {
		if s.probe.HTTPGet != nil {
			to.HTTPHeaders = s.probe.HTTPGet.HTTPHeaders
		}
		*s.probe = corev1.ProbeHandler{HTTPGet: to}
		return
	}
	to.HTTPHeaders = s.hook.HTTPGet.HTTPHeaders
	*s.hook = corev1.LifecycleHandler{HTTPGet: to}
}

// served translates the originals for the proxy's bootstrap, in the order of sites.
func served(sites []probeSite, originals map[string]prober) []bootstrap.Probe {
	out := make([]bootstrap.Probe, 0, len(sites))
	for _, s := range sites {
		p := originals[s.path]
		b := bootstrap.Probe{Path: s.path, Timeout: time.Duration(p.TimeoutSeconds) * time.Second}
		if s.probe != nil && b.Timeout <= 0 {
			b.Timeout = time.Second // Kubernetes API: Probe.timeoutSeconds
		}
		switch {
		case p.HTTPGet != nil:
			switch {
			case p.HTTPGet.Scheme == corev1.URISchemeHTTPS:
				b.Handler = bootstrap.HTTPS
			case p.HTTPGet.Protocol != nil && *p.HTTPGet.Protocol == corev1.HTTPProtocolHTTP2:
				b.Handler = bootstrap.H2C
			}
			b.Port, b.Target = uint16(p.HTTPGet.Port.IntVal), requestURI(p.HTTPGet.Path)
		case p.TCPSocket != nil:
			b.Handler, b.Port = bootstrap.TCP, uint16(p.TCPSocket.Port.IntVal)
		case p.GRPC != nil:
			b.Handler, b.Port = bootstrap.GRPC, uint16(p.GRPC.Port)
			if p.GRPC.Service != nil {
				b.Target = *p.GRPC.Service
			}
		}
		out = append(out, b)
	}
	return out
}

// requestURI is what kubelet would ask for (Kubernetes: pkg/probe/http formatURL).
func requestURI(path string) string {
	u, err := url.Parse(path)
	if err != nil {
		u = &url.URL{Path: path}
	}
	if !strings.HasPrefix(u.Path, "/") {
		u.Path, u.RawPath = "/"+u.Path, ""
	}
	u.Scheme, u.Host, u.Opaque = "", "", ""
	return u.RequestURI()
}

// encodeProbers is deterministic: encoding/json sorts keys.
func encodeProbers(p map[string]prober) (string, error) {
	if len(p) == 0 {
		return "", nil
	}
	b, err := json.Marshal(p)
	return string(b), err
}

func decodeProbers(text string) (map[string]prober, error) {
	if text == "" {
		return nil, nil
	}
	var p map[string]prober
	if err := strictJSON([]byte(text), &p); err != nil {
		return nil, fmt.Errorf("container %s: environment variable %s: %w", ProxyName, envAppProbers, err)
	}
	for path, x := range p {
		if x.HTTPGet != nil && x.HTTPGet.Port.Type == intstr.String || x.TCPSocket != nil && x.TCPSocket.Port.Type == intstr.String {
			return nil, fmt.Errorf("container %s: environment variable %s: %s has no port number", ProxyName, envAppProbers, path)
		}
	}
	return p, nil
}
