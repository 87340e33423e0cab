package identity

import (
	"strings"
)

// Keys of the ConfigMap istio-ca-root-cert, which stands in every namespace.
const (
	// RootKey holds the PEM bundle of the mesh's roots (Istio's name).
	RootKey = "root-cert.pem"
	// RootDocumentKey holds the same bundle as an Envoy SDS document, so that a
	// sidecar follows a change of the control plane's root without a restart.
	RootDocumentKey = "xds-root.yaml"
	// RootSecretName is the name of the Secret inside that document.
	RootSecretName = "xds-ca"
)

// RootConfigMap gives the data of the ConfigMap istio-ca-root-cert for a PEM
// bundle of roots. Both keys must be in one volume of the sidecar: kubelet
// swaps the whole volume at once, and Envoy watches its directory
// (Envoy: SDS by path_config_source with watched_directory).
func RootConfigMap(pem []byte) map[string]string {
	return map[string]string{RootKey: string(pem), RootDocumentKey: rootDocument(pem)}
}

// rootDocument is text made by hand on purpose: it has one variable, and a
// reader of the ConfigMap sees the certificates as he knows them.
func rootDocument(pem []byte) string {
	var b strings.Builder
	b.WriteString(`resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: ` + RootSecretName + `
  validation_context:
    trusted_ca:
      inline_string: |
`)
	for line := range strings.Lines(strings.TrimSpace(string(pem))) {
		b.WriteString("        " + strings.TrimSpace(line) + "\n")
	}
	return b.String()
}
