package webhook

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/redirect"
	"github.com/weft-mesh/weft/templates"
)

// envPrometheus keeps what the pod said about its own metrics before the merge took its place (Istio's variable and JSON).
const envPrometheus = "ISTIO_PROMETHEUS_ANNOTATIONS"

// valueNames are what templates may refer to. See values for what each is.
var valueNames = map[string]bool{
	"mesh.revision": true, "mesh.network": true,
	"pod.tlsMode": true, "pod.firstContainer": true,
	"workload.name": true, "workload.canonicalName": true, "workload.canonicalRevision": true,
	"proxy.image": true, "proxy.imagePullPolicy": true, "proxy.imagePullSecrets": true, "proxy.resources": true, "proxy.flags": true,
	"proxy.env": true, "proxy.customBootstrapArgs": true, "proxy.userVolumes": true, "proxy.userVolumeMounts": true, "proxy.healthPort": true,
	"proxy.preStop": true,
	"gate.probe":    true, "gate.hook": true,
	"sidecar.bootstrap": true, "sidecar.redirect": true, "sidecar.appProbers": true, "sidecar.proofPort": true, "sidecar.readinessProbe": true,
	"sidecar.runAsUser": true, "sidecar.runAsGroup": true, "sidecar.runAsNonRoot": true, "sidecar.capabilities": true,
	"gateway.bootstrap": true, "gateway.readinessProbe": true, "gateway.sysctls": true,
	"metrics.scrape": true, "metrics.port": true, "metrics.path": true,
}

// injection is the work on one pod.
type injection struct {
	in        *Injector
	pod       *corev1.Pod // a copy of the user's, being changed
	namespace string
	mesh      *meshconfig.MeshConfig
	before    *status // of an earlier call
	override  corev1.Container

	user      userSettings
	pc        *meshconfig.ProxyConfig
	owner     owner
	canonical [2]string
	metrics   scrape
	warnings  []string

	sites     []probeSite // of a captured pod
	originals map[string]prober
	bootstrap *bootstrap.Template
	spec      redirect.Spec
	captured  bool // a template asked for redirection
	gated     StartGate
}

// values computes everything that templates may ask for; what is costly, or has errors of its own, only when it is asked for.
func (j *injection) values() (*templates.Values, error) {
	in := j.in
	u := &j.user
	resources := u.resources
	if resources == nil {
		resources = in.o.Resources
	}
	limits := resources.Limits
	if cpu, ok := j.override.Resources.Limits[corev1.ResourceCPU]; ok {
		limits = corev1.ResourceList{corev1.ResourceCPU: cpu}
	}
	flags, err := in.flags(j.pc, u, limits)
	if err != nil {
		return nil, err
	}
	metadata := j.pc.GetProxyMetadata()
	env, err := proxyEnv(metadata)
	if err != nil {
		return nil, err
	}
	if j.metrics.original != "" {
		env = append(env, corev1.EnvVar{Name: envPrometheus, Value: j.metrics.original})
	}
	image := cmp.Or(u.image, in.o.ProxyImage)
	if kind := cmp.Or(u.imageType, j.pc.GetImage().GetImageType()); kind != "" && u.image == "" {
		if _, err := parseImageType(kind); err != nil {
			return nil, fmt.Errorf("ProxyConfig.image.imageType %q: %w", kind, err)
		}
		image = imageOfType(image, kind)
	}
	health, err := statusPort(j.pc, u)
	if err != nil {
		return nil, err
	}
	healthPort := int32(cmp.Or(health, bootstrap.PortHealth))
	named := map[string]any{
		"mesh.revision":              in.o.Revision,
		"mesh.network":               none(in.o.Network),
		"pod.tlsMode":                cmp.Or(j.pod.Labels[labelTLSMode], "istio"),
		"pod.firstContainer":         none(j.firstContainer()),
		"workload.name":              j.owner.Name,
		"workload.canonicalName":     none(labelValue(j.canonical[0])),
		"workload.canonicalRevision": none(labelValue(j.canonical[1])),
		"proxy.image":                image,
		"proxy.resources":            *resources.DeepCopy(),
		"proxy.flags":                flags,
		"proxy.healthPort":           healthPort,
		"proxy.preStop":              func() (any, error) { return j.preStop() },
		"gate.probe":                 func() (any, error) { g, err := j.gate(); return g == GateProbe, err },
		"gate.hook":                  func() (any, error) { g, err := j.gate(); return g == GateHook, err },
		"sidecar.bootstrap":          func() (any, error) { return j.sidecarBootstrap() },
		"sidecar.redirect":           func() (any, error) { return j.redirect(healthPort) },
		"sidecar.appProbers":         func() (any, error) { return j.appProbers() },
		"sidecar.proofPort":          func() (any, error) { return j.proofPort(healthPort) },
		"gateway.bootstrap":          func() (any, error) { return j.build(bootstrap.Router, nil) },
	}
	set := func(name string, present bool, v any) {
		if present {
			named[name] = v
		}
	}
	set("proxy.imagePullPolicy", in.o.ImagePullPolicy != "", in.o.ImagePullPolicy)
	set("proxy.imagePullSecrets", len(in.pullSecrets) > 0, in.pullSecrets)
	set("proxy.env", len(env) > 0, env)
	volumes, mounts := u.volumes, u.mounts
	if u.bootstrapOverride != "" {
		volumes = append(volumes, corev1.Volume{Name: "custom-bootstrap-volume", VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: u.bootstrapOverride}},
		}})
		mounts = append(mounts, corev1.VolumeMount{Name: "custom-bootstrap-volume", MountPath: customBootstrapDir, ReadOnly: true})
		// Envoy merges --config-yaml over -c: the user's file adds what ours does not say.
		named["proxy.customBootstrapArgs"] = []string{"--config-path", customBootstrapDir + "/custom_bootstrap.json"}
	}
	set("proxy.userVolumes", len(volumes) > 0, volumes)
	set("proxy.userVolumeMounts", len(mounts) > 0, mounts)
	set("metrics.scrape", j.metrics.port != "", j.metrics.scrape)
	set("metrics.port", j.metrics.port != "", j.metrics.port)
	set("metrics.path", j.metrics.port != "", j.metrics.path)
	if health != 0 {
		named["gateway.readinessProbe"] = j.readiness(healthPort)
		named["sidecar.readinessProbe"] = func() (any, error) {
			port, err := j.proofPort(healthPort)
			return j.readiness(port), err
		}
	}
	named["sidecar.runAsUser"] = func() (any, error) { return j.identity(0, int64(redirect.ProxyUID)) }
	named["sidecar.runAsGroup"] = int64(redirect.ProxyGID)
	named["sidecar.runAsNonRoot"] = func() (any, error) { return j.identity(false, true) }
	named["sidecar.capabilities"] = func() (any, error) { return j.identity([]corev1.Capability{"NET_RAW"}, nil) }
	if sc := j.pod.Spec.SecurityContext; sc == nil || len(sc.Sysctls) == 0 {
		named["gateway.sysctls"] = []corev1.Sysctl{{Name: "net.ipv4.ip_unprivileged_port_start", Value: "0"}}
	}
	return &templates.Values{Named: named, Labels: j.pod.Labels, Annotations: j.pod.Annotations}, nil
}

const customBootstrapDir = "/etc/istio/custom-bootstrap"

func none(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// labelValue cuts what is no label value (a name may have 253 characters, a label 63).
func labelValue(s string) string {
	if len(s) > 63 {
		s = s[:63]
	}
	return strings.TrimRight(s, "-_.")
}

func (j *injection) firstContainer() string {
	if _, ok := j.pod.Annotations["kubectl.kubernetes.io/default-container"]; ok {
		return j.pod.Annotations["kubectl.kubernetes.io/default-container"]
	}
	for _, c := range j.pod.Spec.Containers {
		if c.Name != ProxyName {
			return c.Name
		}
	}
	return ""
}

func (j *injection) readiness(port int32) *corev1.Probe {
	p := &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
			Path: bootstrap.HealthPath, Port: intstr.FromInt32(port),
		}},
		TimeoutSeconds:   3,
		PeriodSeconds:    5,
		FailureThreshold: 2,
	}
	if j.user.readyDelay != nil {
		p.InitialDelaySeconds = *j.user.readyDelay
	}
	if j.user.readyPeriod != nil {
		p.PeriodSeconds = *j.user.readyPeriod
	}
	if j.user.readyFailures != nil {
		p.FailureThreshold = *j.user.readyFailures
	}
	return p
}

// capture reads the redirection once.
func (j *injection) capture() error {
	if j.captured {
		return nil
	}
	uid := int64(redirect.ProxyUID)
	if sc := j.override.SecurityContext; sc != nil && sc.RunAsUser != nil {
		uid = *sc.RunAsUser
	}
	health, err := statusPort(j.pc, &j.user)
	if err != nil {
		return err
	}
	spec, warnings, err := j.in.captured(j.pc, j.pod.Annotations, uid, cmp.Or(health, redirect.PortHealth))
	if err != nil {
		return err
	}
	if uid < 0 || uid > 1<<32-2 || uid == 0 && spec.Mode == redirect.Redirect {
		return fmt.Errorf("container %s: securityContext.runAsUser: %d cannot be told from the app's own processes; choose another user, such as %d", ProxyName, uid, redirect.ProxyUID)
	}
	j.spec, j.captured = spec, true
	j.warnings = append(j.warnings, warnings...)
	if spec.Mode == redirect.None || j.user.keepProbes {
		return nil
	}
	j.sites = probeSites(j.pod, j.added)
	earlier := map[string]prober(nil)
	if j.before != nil {
		if earlier, err = decodeProbers(envValue(findProxy(j.pod), envAppProbers)); err != nil {
			return err
		}
	}
	j.originals, err = probers(j.sites, earlier)
	return err
}

// redirect is the annotation by which the CNI plugin and the node agent know what to do. It says on which port the proxy tells about
// its health when the hook holds the pod back.
func (j *injection) redirect(health int32) (any, error) {
	gate, err := j.gate()
	if err != nil || j.spec.Mode == redirect.None {
		return nil, err
	}
	spec := j.spec
	if gate == GateHook {
		spec.Gate = uint16(health)
	}
	return spec.Encode(), nil
}

// identity gives root's value under TPROXY, whose sockets need NET_RAW, and the ordinary one else.
func (j *injection) identity(tproxy, ordinary any) (any, error) {
	if err := j.capture(); err != nil {
		return nil, err
	}
	if j.spec.Mode == redirect.TProxy {
		return tproxy, nil
	}
	return ordinary, nil
}

// proofPort is where kubelet asks the sidecar: only the pod's own redirect rules lead from there to Envoy.
func (j *injection) proofPort(health int32) (int32, error) {
	if err := j.capture(); err != nil {
		return 0, err
	}
	if j.spec.Mode == redirect.None {
		return health, nil
	}
	return redirect.PortProof, nil
}

func (j *injection) sidecarBootstrap() (any, error) {
	if err := j.capture(); err != nil {
		return nil, err
	}
	return j.build(bootstrap.Sidecar, served(j.sites, j.originals))
}

func (j *injection) appProbers() (any, error) {
	if err := j.capture(); err != nil {
		return nil, err
	}
	text, err := encodeProbers(j.originals)
	if text == "" || err != nil {
		return nil, err
	}
	// Kubelet expands $(VAR) in values, and a probe's path may hold one.
	return text, nil
}

func (j *injection) build(kind bootstrap.Kind, probes []bootstrap.Probe) (any, error) {
	o := j.in.o
	app := cmp.Or(j.pod.Labels["app"], j.canonical[0])
	p := bootstrap.Params{Kind: kind, App: app, Probes: probes, AppMetrics: j.metrics.app}
	add := func(name, text string) {
		if text != "" {
			p.Metadata = append(p.Metadata, bootstrap.Field{Name: name, Text: text})
		}
	}
	p.Metadata = make([]bootstrap.Field, 0, 12)
	add("WORKLOAD_NAME", j.owner.Name)
	add("OWNER", j.owner.uid(j.namespace))
	add("CLUSTER_ID", o.ClusterID)
	add("MESH_ID", cmp.Or(j.pc.GetMeshId(), o.TrustDomain))
	add("NETWORK", o.Network)
	if kind == bootstrap.Sidecar {
		add("APP_CONTAINERS", j.appContainers())
		add("INTERCEPTION_MODE", string(j.spec.Mode))
	}
	if j.hasOwnLabels() {
		labels := make(map[string]string, len(j.pod.Labels))
		for k, v := range j.pod.Labels {
			// Those that the templates add would be missing the first time and there the second.
			if !templateLabels[k] {
				labels[k] = v
			}
		}
		text, err := json.Marshal(labels)
		if err != nil {
			return nil, err
		}
		p.Metadata = append(p.Metadata, bootstrap.Field{Name: "LABELS", JSON: string(text)})
	}
	seen := map[string]bool{}
	for _, f := range p.Metadata {
		seen[f.Name] = true
	}
	for _, name := range sortedKeys(j.pc.GetProxyMetadata()) {
		// Istio: variables named ISTIO_META_X are the node's metadata X.
		key, ok := strings.CutPrefix(name, "ISTIO_META_")
		if !ok {
			continue
		}
		if seen[key] || key == "NODE_NAME" {
			return nil, fmt.Errorf("ProxyConfig.proxyMetadata: %s is set by the mesh and cannot be changed; remove it", name)
		}
		add(key, j.pc.ProxyMetadata[name])
	}
	return j.bootstrap.Build(p)
}

// added: the container is the proxy, or came from a template in an earlier call. The first call did not see it.
func (j *injection) added(container string) bool {
	return container == ProxyName || j.before != nil &&
		(slices.Contains(j.before.Containers, container) || slices.Contains(j.before.InitContainers, container))
}

func (j *injection) hasOwnLabels() bool {
	for k := range j.pod.Labels {
		if !templateLabels[k] {
			return true
		}
	}
	return false
}

var templateLabels = map[string]bool{
	labelTLSMode: true, labelCanonicalName: true, labelCanonicalRevision: true, labelNetwork: true,
}

func (j *injection) appContainers() string {
	var names []string
	for _, c := range j.pod.Spec.Containers {
		if !j.added(c.Name) {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, ",")
}

// scrape is what becomes of the pod's metrics. With merging (Istio: enablePrometheusMerge) Prometheus asks the proxy, which asks
// the app: under STRICT mTLS it could not ask the app itself.
type scrape struct {
	scrape, port, path string // the annotations to write; none when port is ""
	app                *bootstrap.AppMetrics
	original           string // for envPrometheus
}

type scrapeAnnotations struct {
	Scrape string `json:"scrape"`
	Path   string `json:"path"`
	Port   string `json:"port"`
}

func (j *injection) mergeMetrics() (scrape, error) {
	merge := true
	if e := j.mesh.GetEnablePrometheusMerge(); e != nil {
		merge = e.Value
	}
	if j.user.mergeMetrics != nil {
		merge = *j.user.mergeMetrics
	}
	a := j.pod.Annotations
	if !merge || a[annScrape] == "false" {
		return scrape{}, nil
	}
	out := scrape{scrape: "true", port: strconv.Itoa(bootstrap.PortProbes), path: bootstrap.MetricsPath}
	own := scrapeAnnotations{Scrape: a[annScrape], Path: a[annScrapePath], Port: a[annScrapePort]}
	if j.before != nil && own.Port == out.port && own.Path == out.path {
		// Already merged; what it was is in the proxy's environment.
		own = scrapeAnnotations{}
		if text := envValue(findProxy(j.pod), envPrometheus); text != "" {
			if err := strictJSON([]byte(text), &own); err != nil {
				return scrape{}, fmt.Errorf("container %s: environment variable %s: %w", ProxyName, envPrometheus, err)
			}
		}
	}
	if own.Scrape != "true" {
		return out, nil
	}
	port := uint64(80)
	if own.Port != "" {
		var err error
		if port, err = strconv.ParseUint(own.Port, 10, 16); err != nil || port == 0 {
			return scrape{}, annotationError(annScrapePort, own.Port, fmt.Errorf("want a port number, or %s: \"false\" to leave the metrics alone", annMergeMetrics))
		}
	}
	out.app = &bootstrap.AppMetrics{Port: uint16(port), Path: requestURI(cmp.Or(own.Path, "/metrics"))}
	text, err := json.Marshal(own)
	out.original = string(text)
	return out, err
}
