package mesh

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	"sigs.k8s.io/yaml"
)

// meshState is the MeshConfig in force.
type meshState struct {
	config *meshconfig.MeshConfig
	ref    Ref // zero for the defaults
}

// DefaultMeshConfig is Istio's MeshConfig when the user says nothing.
func DefaultMeshConfig() *meshconfig.MeshConfig {
	return &meshconfig.MeshConfig{
		ProxyListenPort:          15001,
		ProxyInboundListenPort:   15006,
		ConnectTimeout:           durationpb.New(10 * time.Second),
		ProtocolDetectionTimeout: durationpb.New(0),
		IngressService:           "istio-ingressgateway",
		IngressControllerMode:    meshconfig.MeshConfig_STRICT,
		IngressClass:             "istio",
		EnableTracing:            true,
		AccessLogEncoding:        meshconfig.MeshConfig_TEXT,
		DefaultConfig:            DefaultProxyConfig(),
		EnableAutoMtls:           wrapperspb.Bool(true),
		EnablePrometheusMerge:    wrapperspb.Bool(true),
		OutboundTrafficPolicy:    &meshconfig.MeshConfig_OutboundTrafficPolicy{Mode: meshconfig.MeshConfig_OutboundTrafficPolicy_ALLOW_ANY},
		InboundTrafficPolicy:     &meshconfig.MeshConfig_InboundTrafficPolicy{Mode: meshconfig.MeshConfig_InboundTrafficPolicy_PASSTHROUGH},
		TrustDomain:              "cluster.local",
		RootNamespace:            "istio-system",
		DnsRefreshRate:           durationpb.New(60 * time.Second),

		DefaultServiceExportTo:         []string{"*"},
		DefaultVirtualServiceExportTo:  []string{"*"},
		DefaultDestinationRuleExportTo: []string{"*"},

		LocalityLbSetting: &networking.LocalityLoadBalancerSetting{Enabled: wrapperspb.Bool(true)},
		DefaultProviders:  &meshconfig.MeshConfig_DefaultProviders{Metrics: []string{"prometheus"}},
		ExtensionProviders: []*meshconfig.MeshConfig_ExtensionProvider{
			{Name: "prometheus", Provider: &meshconfig.MeshConfig_ExtensionProvider_Prometheus{
				Prometheus: &meshconfig.MeshConfig_ExtensionProvider_PrometheusMetricsProvider{}}},
			{Name: "envoy", Provider: &meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLog{
				EnvoyFileAccessLog: &meshconfig.MeshConfig_ExtensionProvider_EnvoyFileAccessLogProvider{Path: "/dev/stdout"}}},
		},
		DefaultHttpRetryPolicy: &networking.HTTPRetry{
			Attempts: 2,
			RetryOn:  "connect-failure,refused-stream,unavailable,cancelled,reset-before-request",
		},
	}
}

// DefaultProxyConfig is MeshConfig.defaultConfig when the user says nothing.
func DefaultProxyConfig() *meshconfig.ProxyConfig {
	return &meshconfig.ProxyConfig{
		ConfigPath:               "./etc/istio/proxy",
		ClusterName:              &meshconfig.ProxyConfig_ServiceCluster{ServiceCluster: "istio-proxy"},
		DrainDuration:            durationpb.New(45 * time.Second),
		TerminationDrainDuration: durationpb.New(5 * time.Second),
		ProxyAdminPort:           15000,
		DiscoveryAddress:         "istiod.istio-system.svc:15012",
		ControlPlaneAuthPolicy:   meshconfig.AuthenticationPolicy_MUTUAL_TLS,
		StatNameLength:           189,
		StatusPort:               15020,
	}
}

// ParseMeshConfig reads the value of the key "mesh" of the ConfigMap "istio" and fills in
// Istio's defaults. Messages inside are merged with the defaults field by field; lists replace
// them, except extensionProviders, where a name replaces its namesake. Unknown fields are returned as
// warnings; they come from other versions of Istio and must not make the whole configuration fail.
func ParseMeshConfig(text string) (*meshconfig.MeshConfig, []string, error) {
	raw := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &raw); err != nil {
		return nil, nil, fmt.Errorf("not YAML: %w", err)
	}
	doc, err := json.Marshal(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("not a mapping with string keys: %w", err)
	}
	// Istio's own JSON decoder: it takes "250ms" and "1h" for durations, which protojson does not.
	written := &meshconfig.MeshConfig{}
	if err := written.UnmarshalJSON(doc); err != nil {
		return nil, nil, err
	}
	config := DefaultMeshConfig()
	providers := config.ExtensionProviders
	warnings := overlay(config.ProtoReflect(), written.ProtoReflect(), raw, "")
	for _, idle := range []struct {
		written bool
		field   string
	}{
		{len(written.DiscoverySelectors) > 0, "discoverySelectors"},
		{len(written.ServiceSettings) > 0, "serviceSettings"},
		{written.Ca != nil, "ca"},
		{written.GetDefaultConfig().GetTracing() != nil, "defaultConfig.tracing"},
	} {
		if idle.written {
			warnings = append(warnings, idle.field+" has no effect in this version of weft")
		}
	}
	if text, ok := written.GetDefaultConfig().GetProxyMetadata()[DiscoveryVariable]; ok {
		if _, err := ParseDiscovery(text); err != nil {
			warnings = append(warnings, fmt.Sprintf("%s: %v: write one of them; until then sidecars are %s", discoveryField, err, DefaultDiscovery))
		}
	}
	config.ExtensionProviders = providers
	for _, p := range written.ExtensionProviders {
		replaced := false
		for i, old := range config.ExtensionProviders {
			if old.Name == p.Name {
				config.ExtensionProviders[i], replaced = p, true
			}
		}
		if !replaced {
			config.ExtensionProviders = append(config.ExtensionProviders, p)
		}
	}
	return config, warnings, nil
}
