package envoy

import (
	"encoding/json"
	"fmt"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	proxyprotocol "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/weft-mesh/weft/mesh"
)

// proxyConfigAnnotation holds a pod's own part of the MeshConfig's defaultConfig.
const proxyConfigAnnotation = "proxy.istio.io/config"

// topology says what stands in front of a gateway: how many proxies whose x-forwarded-for is believed, who vouches for client certificates,
// and whether connections begin with a PROXY protocol header (Istio API: ProxyConfig.gatewayTopology). The pod's annotation
// goes before the mesh's default, as a whole.
func (v *view) topology(w *mesh.Workload) *meshconfig.Topology {
	general := v.mesh().GetDefaultConfig().GetGatewayTopology()
	text := w.Annotations[proxyConfigAnnotation]
	if text == "" {
		return general
	}
	own, err := topologyOf(text)
	if err != nil {
		v.problem(w.Ref, "metadata.annotations["+proxyConfigAnnotation+"]",
			fmt.Sprintf("cannot be read, so the mesh's gatewayTopology applies: %v", err))
		return general
	}
	if own == nil {
		return general
	}
	return own
}

// topologyOf returns nil when the annotation says nothing about it.
func topologyOf(annotation string) (*meshconfig.Topology, error) {
	var config struct {
		GatewayTopology json.RawMessage `json:"gatewayTopology"`
	}
	if err := yaml.Unmarshal([]byte(annotation), &config); err != nil {
		return nil, err
	}
	if len(config.GatewayTopology) == 0 || string(config.GatewayTopology) == "null" {
		return nil, nil
	}
	t := &meshconfig.Topology{}
	if err := protojson.Unmarshal(config.GatewayTopology, t); err != nil {
		return nil, fmt.Errorf("gatewayTopology: %w", err)
	}
	return t, nil
}

// forwardClientCert says what becomes of a client's x-forwarded-client-cert: by default it is replaced by what the gateway itself has
// seen.
func forwardClientCert(d meshconfig.ForwardClientCertDetails) hcm.HttpConnectionManager_ForwardClientCertDetails {
	switch d {
	case meshconfig.ForwardClientCertDetails_SANITIZE:
		return hcm.HttpConnectionManager_SANITIZE
	case meshconfig.ForwardClientCertDetails_FORWARD_ONLY:
		return hcm.HttpConnectionManager_FORWARD_ONLY
	case meshconfig.ForwardClientCertDetails_APPEND_FORWARD:
		return hcm.HttpConnectionManager_APPEND_FORWARD
	case meshconfig.ForwardClientCertDetails_ALWAYS_FORWARD_ONLY:
		return hcm.HttpConnectionManager_ALWAYS_FORWARD_ONLY
	}
	return hcm.HttpConnectionManager_SANITIZE_SET
}

// readProxyProtocol takes the client's address from the header that a load balancer puts before each connection. It must come before
// the filters that look at the connection's own bytes. A connection without the header is closed: anybody who can go around the
// load balancer could otherwise choose whether he is seen.
func readProxyProtocol() *listener.ListenerFilter {
	return listenerFilter("envoy.filters.listener.proxy_protocol", &proxyprotocol.ProxyProtocol{}, nil)
}
