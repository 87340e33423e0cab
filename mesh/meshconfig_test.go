package mesh

import (
	"slices"
	"strings"
	"testing"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

func TestMeshConfigIsLaidOverIstiosDefaults(t *testing.T) {
	config, warnings, err := ParseMeshConfig(`
accessLogFile: /dev/stdout
enableAutoMtls: false
connectTimeout: 250ms
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
defaultHttpRetryPolicy: {attempts: 0}
defaultConfig:
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}
  tracing: {sampling: 10}
extensionProviders:
- {name: envoy, envoyFileAccessLog: {path: /dev/stderr}}
- {name: otel, opentelemetry: {service: otel.obs.svc.cluster.local, port: 4317, prot: x}}
noSuchField: 1
`)
	if err != nil {
		t.Fatal(err)
	}
	if config.AccessLogFile != "/dev/stdout" || config.EnableAutoMtls.Value || config.ConnectTimeout.AsDuration() != 250*time.Millisecond ||
		config.OutboundTrafficPolicy.Mode != meshconfig.MeshConfig_OutboundTrafficPolicy_REGISTRY_ONLY {
		t.Errorf("what was written is not there: %v", config)
	}
	if r := config.DefaultHttpRetryPolicy; r.Attempts != 0 || r.RetryOn == "" {
		t.Errorf("attempts 0 must win and leave the rest of the policy: %v", r)
	}
	if config.TrustDomain != "cluster.local" || config.DefaultConfig.DiscoveryAddress == "" || config.DefaultConfig.Tracing.Sampling != 10 {
		t.Errorf("defaults are gone: %v", config)
	}
	var names []string
	for _, p := range config.ExtensionProviders {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, []string{"prometheus", "envoy", "otel"}) || config.ExtensionProviders[1].GetEnvoyFileAccessLog().Path != "/dev/stderr" {
		t.Errorf("providers: %v", config.ExtensionProviders)
	}
	if len(warnings) != 3 || !strings.HasPrefix(warnings[0], "noSuchField") || !strings.HasPrefix(warnings[1], "extensionProviders[1].opentelemetry.prot ") ||
		warnings[2] != "defaultConfig.tracing has no effect in this version of weft" {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestABrokenMeshConfigLeavesTheLastGoodOneInForce(t *testing.T) {
	s := NewStore(Options{})
	config := func(text string) []Object {
		return []Object{{Object: &corev1.ConfigMap{ObjectMeta: meta("istio-system", "istio"), Data: map[string]string{"mesh": text}}, File: "mesh.yaml", Line: 3}}
	}
	if err := s.Apply(config("trustDomain: example.org")...); err != nil {
		t.Fatal(err)
	}
	if got := s.Snapshot().TrustDomain(); got != "example.org" {
		t.Fatalf("trust domain %q", got)
	}
	err := s.Apply(config("trustDomain: [")...)
	if err == nil || !strings.Contains(err.Error(), "ConfigMap istio-system/istio (mesh.yaml:3): data.mesh") {
		t.Errorf("error %v does not say where", err)
	}
	n := s.Snapshot()
	if n.TrustDomain() != "example.org" || len(n.Problems()) != 1 {
		t.Errorf("trust domain %q, problems %v", n.TrustDomain(), n.Problems())
	}
	if err := s.Apply(config("")...); err != nil {
		t.Fatal(err)
	}
	if n := s.Snapshot(); n.TrustDomain() != "cluster.local" || len(n.Problems()) != 0 {
		t.Errorf("an empty one means the defaults; trust domain %q, problems %v", n.TrustDomain(), n.Problems())
	}
}
