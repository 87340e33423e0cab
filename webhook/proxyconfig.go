package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/envoy/bootstrap"
	"github.com/weft-mesh/weft/redirect"
)

const istioDiscoveryAddress = "istiod.istio-system.svc:15012"

// Fields of ProxyConfig that stock Envoy, started by kubelet and without an agent, has no use for.
var uselessProxyConfig = []protoreflect.Name{
	"config_path", "binary_path", "custom_config_file", "proxy_bootstrap_template_path", "discovery_refresh_delay",
	"statsd_udp_address", "envoy_metrics_service", "envoy_metrics_service_address", "envoy_access_log_service", "readiness_probe", "sds",
	"control_plane_auth_policy", "availability_zone", "private_key_provider", "ca_certificates_pem", "stat_name_length", "file_flush_min_size_kb", "stats_compression",
}

// proxyConfig is the mesh's defaultConfig with the pod's annotation proxy.istio.io/config over it. As in Istio a field of the
// annotation replaces the mesh's, and proxyMetadata and runtimeValues are merged by key. Neither input is changed; without an
// annotation the mesh's own message is returned.
func proxyConfig(mesh *meshconfig.ProxyConfig, annotations map[string]string) (*meshconfig.ProxyConfig, []string, error) {
	if mesh == nil {
		mesh = new(meshconfig.ProxyConfig)
	}
	text, ok := annotations[annProxyConfig]
	if !ok {
		return mesh, nil, nil
	}
	fail := func(err error) (*meshconfig.ProxyConfig, []string, error) {
		return nil, nil, annotationError(annProxyConfig, text, fmt.Errorf("%w; want YAML with the fields of Istio's ProxyConfig, such as concurrency: 2", err))
	}
	js, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return fail(err)
	}
	own := new(meshconfig.ProxyConfig)
	if string(js) != "null" {
		if err := protojson.Unmarshal(js, own); err != nil {
			// protojson writes a changing kind of space on purpose.
			return fail(errors.New(strings.ReplaceAll(err.Error(), "\u00a0", " ")))
		}
	}
	merged := proto.Clone(mesh).(*meshconfig.ProxyConfig)
	var warnings []string
	own.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if slices.Contains(uselessProxyConfig, f.Name()) {
			warnings = append(warnings, fmt.Sprintf("annotation %s: field %s has no effect", annProxyConfig, f.JSONName()))
		}
		if f.IsMap() {
			m := merged.ProtoReflect().Mutable(f).Map()
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				m.Set(k, v)
				return true
			})
			return true
		}
		merged.ProtoReflect().Set(f, v)
		return true
	})
	slices.Sort(warnings)
	return merged, warnings, nil
}

// bootstrapSettings are what the mesh and the pod say about the bootstrap's fixed part.
func (in *Injector) bootstrapSettings(pc *meshconfig.ProxyConfig, u *userSettings) (bootstrap.Settings, error) {
	s := bootstrap.Settings{
		DiscoveryAddress: in.o.DiscoveryAddress,
		DiscoverySAN:     in.o.DiscoverySAN,
		ClusterDomain:    in.o.ClusterDomain,
		IPv4Only:         in.o.IPv4Only,
		RuntimeValues:    pc.GetRuntimeValues(),
	}
	// A MeshConfig without the field is filled in with Istio's default, which must not win over what we were told.
	if a := pc.GetDiscoveryAddress(); a != "" && a != istioDiscoveryAddress {
		s.DiscoveryAddress = a
	}
	if u.discoveryAddress != "" {
		s.DiscoveryAddress = u.discoveryAddress
	}
	if p := pc.GetProxyAdminPort(); p < 0 || p > 65535 {
		return s, fmt.Errorf("ProxyConfig.proxyAdminPort: %d is not a port", p)
	} else if p > 0 {
		s.AdminPort = uint16(p)
	}
	port, err := statusPort(pc, u)
	if err != nil {
		return s, err
	}
	if port > 0 {
		s.HealthPort = port
	}
	m := pc.GetProxyStatsMatcher()
	s.Stats.Prefixes = slices.Concat(m.GetInclusionPrefixes(), u.statsPrefixes)
	s.Stats.Suffixes = slices.Concat(m.GetInclusionSuffixes(), u.statsSuffixes)
	s.Stats.Regexps = slices.Concat(m.GetInclusionRegexps(), u.statsRegexps)
	s.StatsFlushInterval = u.statsFlush
	return s, nil
}

// statusPort is where the proxy answers /healthz/ready; 0 when the pod has switched the readiness probe off.
func statusPort(pc *meshconfig.ProxyConfig, u *userSettings) (uint16, error) {
	if u.statusPort != nil {
		return *u.statusPort, nil
	}
	switch p := pc.GetStatusPort(); {
	case p < 0 || p > 65535:
		return 0, fmt.Errorf("ProxyConfig.statusPort: %d is not a port", p)
	case p > 0 && p != bootstrap.PortProbes: // Istio's default is its agent's port, 15020; there the same path answers
		return uint16(p), nil
	}
	return bootstrap.PortHealth, nil
}

// prepared keeps bootstrap templates: one for the mesh, and a few for pods that deviate.
type prepared struct {
	mu sync.Mutex
	m  map[string]*bootstrap.Template
}

// mostPrepared bounds what annotations can make us keep.
const mostPrepared = 64

func (p *prepared) get(s bootstrap.Settings) (*bootstrap.Template, error) {
	key, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	t, ok := p.m[string(key)]
	p.mu.Unlock()
	if ok {
		return t, nil
	}
	t, err = bootstrap.New(s)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= mostPrepared {
		p.m = map[string]*bootstrap.Template{}
	}
	p.m[string(key)] = t
	return t, nil
}

// concurrency is Envoy's number of worker threads: the configured one, else one for each CPU of the limit, else 2. Zero means
// one for each CPU of the machine (Istio API: ProxyConfig.concurrency).
func concurrency(pc *meshconfig.ProxyConfig, limits corev1.ResourceList) (int32, error) {
	if c := pc.GetConcurrency(); c != nil {
		if c.Value < 0 || c.Value > 1024 {
			return 0, fmt.Errorf("ProxyConfig.concurrency: %d is out of range, want 0 to 1024", c.Value)
		}
		return c.Value, nil
	}
	if cpu, ok := limits[corev1.ResourceCPU]; ok {
		return int32(max(1, (cpu.MilliValue()+999)/1000)), nil
	}
	return 2, nil
}

// flags are Envoy's command line beyond the bootstrap.
func (in *Injector) flags(pc *meshconfig.ProxyConfig, u *userSettings, limits corev1.ResourceList) ([]string, error) {
	out := make([]string, 0, 14)
	n, err := concurrency(pc, limits)
	if err != nil {
		return nil, err
	}
	if n > 0 {
		out = append(out, "--concurrency", strconv.Itoa(int(n)))
	}
	level, component := in.o.LogLevel, in.o.ComponentLog
	if u.logLevel != "" {
		level = u.logLevel
	}
	if u.componentLog != "" {
		component = u.componentLog
	}
	out = append(out, "--log-level", level, "--component-log-level", component)
	drain := 45 * time.Second // Istio's default
	if d := pc.GetDrainDuration(); d != nil {
		drain = d.AsDuration()
	}
	if drain < time.Second || drain > time.Hour {
		return nil, fmt.Errorf("ProxyConfig.drainDuration: %s is out of range, want 1s to 1h", drain)
	}
	out = append(out, "--drain-time-s", strconv.Itoa(int(drain/time.Second)), "--drain-strategy", "immediate")
	flush := time.Second // Istio's default; Envoy's is 10 s, in which nobody sees an access log line
	if d := pc.GetFileFlushInterval(); d != nil {
		flush = d.AsDuration()
	}
	if flush < time.Millisecond || flush > time.Hour {
		return nil, fmt.Errorf("ProxyConfig.fileFlushInterval: %s is out of range, want 1ms to 1h", flush)
	}
	return append(out, "--file-flush-interval-msec", strconv.FormatInt(flush.Milliseconds(), 10)), nil
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// proxyEnv turns ProxyConfig.proxyMetadata into environment variables, as Istio does. The variables that the bootstrap reads
// cannot be set this way: they are the proxy's identity.
func proxyEnv(metadata map[string]string) ([]corev1.EnvVar, error) {
	if len(metadata) == 0 {
		return nil, nil
	}
	env := make([]corev1.EnvVar, 0, len(metadata))
	for name, value := range metadata {
		if !envName.MatchString(name) {
			return nil, fmt.Errorf("ProxyConfig.proxyMetadata: %q is not the name of an environment variable", name)
		}
		switch name {
		case bootstrap.EnvPodName, bootstrap.EnvPodNamespace, bootstrap.EnvPodIP, bootstrap.EnvInstanceIPs, bootstrap.EnvServiceAccount,
			bootstrap.EnvNodeName, envAppProbers, envPrometheus:
			return nil, fmt.Errorf("ProxyConfig.proxyMetadata: %s is set by the mesh and cannot be changed; remove it", name)
		}
		// Kubelet expands $(VAR) in values; Istio's users write plain text.
		env = append(env, corev1.EnvVar{Name: name, Value: strings.ReplaceAll(value, "$", "$$")})
	}
	slices.SortFunc(env, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
	return env, nil
}

// captured is what is redirected: the mesh's setting, ProxyConfig's interception mode, then the pod's annotations.
// health is the port of the proxy's health listener.
func (in *Injector) captured(pc *meshconfig.ProxyConfig, annotations map[string]string, uid int64, health uint16) (redirect.Spec, []string, error) {
	base := *in.o.Redirect
	switch pc.GetInterceptionMode() {
	case meshconfig.ProxyConfig_TPROXY:
		base.Mode = redirect.TProxy
	case meshconfig.ProxyConfig_NONE:
		base.Mode = redirect.None
	}
	var warnings []string
	if pc.GetProxyMetadata()["INVALID_DROP"] == "true" {
		base.DropInvalid = true
	}
	if pc.GetProxyMetadata()["ISTIO_META_DNS_CAPTURE"] == "true" {
		warnings = append(warnings, "ProxyConfig.proxyMetadata: ISTIO_META_DNS_CAPTURE has no effect yet: DNS queries are not captured")
	}
	spec, err := redirect.FromAnnotations(base, annotations)
	if err != nil {
		return spec, nil, err
	}
	if health != redirect.PortHealth && spec.IncludeInboundPorts.All {
		// As the usual port is: who asks for the proxy's health has no certificate.
		spec.ExcludeInboundPorts = append(spec.ExcludeInboundPorts, health)
	}
	switch {
	case spec.Mode == redirect.TProxy:
		// Root's sockets cannot be told from the app's by user, only by group.
		spec.ProxyUIDs, spec.ProxyGIDs = nil, []uint32{redirect.ProxyGID}
		warnings = append(warnings, "interceptionMode TPROXY runs "+ProxyName+" as user 0 with the capability NET_RAW, which Pod Security baseline and restricted refuse")
	case uid != redirect.ProxyUID:
		spec.ProxyUIDs = []uint32{uint32(uid)}
	}
	return spec, warnings, nil
}
