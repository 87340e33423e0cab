package webhook

import (
	"fmt"
	"log/slog"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
)

// DefaultProxyImage is the stock Envoy that is injected unless something else is asked for.
const DefaultProxyImage = "docker.io/envoyproxy/envoy:distroless-v1.40.0"

// ProxyName is the name of the injected container, and of the container by which a user overrides parts of it.
const ProxyName = "istio-proxy"

// Policy says what happens to a pod for which no selector, label or annotation speaks (Istio: sidecarInjectorWebhook.policy).
type Policy string

const (
	// PolicyEnabled injects pods of enabled namespaces unless they opt out.
	PolicyEnabled Policy = "enabled"
	// PolicyDisabled injects only pods that opt in.
	PolicyDisabled Policy = "disabled"
)

// Options are fixed for the life of an Injector. The zero value means Istio's defaults throughout.
type Options struct {
	Revision string   // "default"
	Tags     []string // revision tags that mean this revision as well
	Policy   Policy   // PolicyEnabled

	NeverInject, AlwaysInject []metav1.LabelSelector // on pod labels (Istio: neverInjectSelector, alwaysInjectSelector)

	RootNamespace    string // "istio-system"
	DiscoveryAddress string // "istiod.istio-system.svc:15012"; MeshConfig.defaultConfig wins
	DiscoverySAN     string // the host of DiscoveryAddress
	ClusterDomain    string // "cluster.local"
	TrustDomain      string // "cluster.local"
	ClusterID        string // "Kubernetes"
	Network          string // none
	IPv4Only         bool   // the proxy binds 0.0.0.0 instead of [::]: for kernels without IPv6

	ProxyImage       string                       // DefaultProxyImage
	ImagePullPolicy  corev1.PullPolicy            // kubelet's default
	ImagePullSecrets []string                     // names, in the pod's namespace
	Resources        *corev1.ResourceRequirements // requests 100m and 128Mi, limits 2 and 1Gi
	LogLevel         string                       // "warning"
	ComponentLog     string                       // "misc:error"
	Redirect         *redirect.Spec               // what is captured unless annotations say more; redirect.Default()
	StartGate        StartGate                    // GateAuto; a pod chooses with weft.dev/start-gate
	NodesHold        func() bool                  // under GateAuto: whether every node holds the hook's request, see NodeGate; nil: no. Any goroutine calls it

	Templates        map[string][]byte // users' own, and replacements of "sidecar" and "gateway"
	DefaultTemplates []string          // ["sidecar"]; a pod chooses with inject.istio.io/templates
}

func (o Options) withDefaults() Options {
	def := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	def(&o.Revision, "default")
	def((*string)(&o.Policy), string(PolicyEnabled))
	def(&o.RootNamespace, "istio-system")
	def(&o.DiscoveryAddress, "istiod."+o.RootNamespace+".svc:15012")
	def(&o.ClusterDomain, "cluster.local")
	def(&o.TrustDomain, "cluster.local")
	def(&o.ClusterID, "Kubernetes")
	def(&o.ProxyImage, DefaultProxyImage)
	def((*string)(&o.StartGate), string(GateAuto))
	def(&o.LogLevel, "warning")
	def(&o.ComponentLog, "misc:error")
	if o.Resources == nil {
		o.Resources = &corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi")},
		}
	}
	if o.Redirect == nil {
		spec := redirect.Default()
		o.Redirect = &spec
	}
	if len(o.DefaultTemplates) == 0 {
		o.DefaultTemplates = []string{templateSidecar}
	}
	return o
}

func (o Options) validate() error {
	if o.Policy != PolicyEnabled && o.Policy != PolicyDisabled {
		return fmt.Errorf("policy %q: want %s or %s", o.Policy, PolicyEnabled, PolicyDisabled)
	}
	if _, err := parseStartGate(string(o.StartGate)); err != nil {
		return fmt.Errorf("start gate %q: %w", o.StartGate, err)
	}
	if err := checkLogLevel(o.LogLevel); err != nil {
		return fmt.Errorf("log level %q: %w", o.LogLevel, err)
	}
	return nil
}

// Config is what a Server needs beside Options.
type Config struct {
	Options Options
	// Namespace gives the labels of a namespace, ok=false when it is unknown. They explain decisions and may be old: see
	// Injector.DecideSelected. It is called for every request, by several goroutines.
	Namespace func(name string) (labels map[string]string, ok bool)
	// Mesh gives the current MeshConfig; nil, or a nil result, means Istio's defaults. A changed MeshConfig must be a new
	// message: what is derived from it is kept by its address.
	Mesh func() *meshconfig.MeshConfig
	// Discovery is the choice for the pods of a namespace, see [mesh.DiscoveryOf]; nil: pods have none of their own. It is called for every request.
	Discovery func(namespace string) mesh.Discovery
	// References lets validation warn of references that lead nowhere; nil: it does not.
	References References
	Log        *slog.Logger // slog.Default()
}
