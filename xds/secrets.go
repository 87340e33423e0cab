package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
)

// Names of the secrets that every proxy has, as in Istio.
const (
	svidName = "default" // the workload's certificate and key
	rootName = "ROOTCA"  // whom it trusts
)

// private begins the names of scopes that belong to one stream: what leads from
// one version to the next is not kept for others.
const private = "private/"

// wallet holds the secrets of one stream, as a scope of its own. It holds a
// private key: it is not cached, logged or shown.
type wallet struct {
	authority *identity.Authority
	id        identity.ID
	ttl       time.Duration
	set       *envoy.Set
	version   identity.Version
	renewAt   time.Time
	// kept: the proxy has a good certificate from before it connected; its bytes
	// are unknown here, and not needed unless it asks again.
	kept bool
}

// newWallet looks at the version of the certificate that a reconnecting proxy
// says it has. It can only deceive itself with that.
func newWallet(a *identity.Authority, id identity.ID, ttl time.Duration, has string, now time.Time) *wallet {
	c := &wallet{authority: a, id: id, ttl: ttl, set: &envoy.Set{Scope: private + "wallet"}}
	c.put(rootSecret(a.Roots()))
	if v, ok := identity.ParseVersion(has); ok && a.Current(v, now) {
		c.version, c.renewAt, c.kept = v, v.RenewAt(), true
		c.put(&envoy.Resource{Type: envoy.Secret, Name: svidName, Version: has})
	}
	return c
}

// withoutKeys leaves out what holds private keys: for streams that may not carry them.
func withoutKeys(sets []*envoy.Set) []*envoy.Set {
	holdsKey := func(r *envoy.Resource) bool { return r.Private }
	sets = slices.Clone(sets)
	for i, s := range sets {
		if slices.ContainsFunc(s.Resources[envoy.Secret], holdsKey) {
			less := *s
			less.Scope = private + s.Scope
			less.Resources[envoy.Secret] = slices.DeleteFunc(slices.Clone(s.Resources[envoy.Secret]), holdsKey)
			sets[i] = &less
		}
	}
	return sets
}

// put makes the next Set, with one resource replaced or added.
func (c *wallet) put(r *envoy.Resource) {
	next := &envoy.Set{Scope: c.set.Scope, Version: c.set.Version + 1}
	var list []*envoy.Resource
	for _, old := range c.set.Resources[envoy.Secret] {
		if old.Name != r.Name {
			list = append(list, old)
		}
	}
	list = append(list, r)
	sortByName(list)
	next.Resources[envoy.Secret] = list
	c.set = next
}

// issue makes a new certificate.
func (c *wallet) issue() error {
	svid, err := c.authority.Issue(c.id, c.ttl)
	if err != nil {
		return err
	}
	c.version, c.renewAt, c.kept = svid.Version, svid.Version.RenewAt(), false
	c.put(newResource(svidName, svid.Version.String(), &tls.Secret{
		Name: svidName,
		Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
			CertificateChain: inline(svid.Chain),
			PrivateKey:       inline(svid.Key),
		}},
	}))
	return nil
}

// refresh follows the authority. It reports whether a new certificate is due.
func (c *wallet) refresh(now time.Time) (due bool) {
	if root := rootSecret(c.authority.Roots()); find(c.set.Resources[envoy.Secret], rootName).Version != root.Version {
		c.put(root)
	}
	return !c.authority.Current(c.version, now)
}

func rootSecret(pem []byte) *envoy.Resource {
	sum := sha256.Sum256(pem)
	return newResource(rootName, hex.EncodeToString(sum[:8]), &tls.Secret{
		Name: rootName,
		Type: &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{
			TrustedCa: inline(pem),
		}},
	})
}

func inline(data []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: data}}
}

// newResource encodes a secret that this package makes itself.
func newResource(name, version string, m *tls.Secret) *envoy.Resource {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Only invalid UTF-8 in a string field can fail, and there is none.
		panic(err)
	}
	return &envoy.Resource{Type: envoy.Secret, Name: name, Version: version, Body: body, Segment: segment(envoy.Secret, name, version, body)}
}

// segment encodes a `resources` entry of a DeltaDiscoveryResponse.
func segment(t envoy.Type, name, version string, body []byte) []byte {
	value := append([]byte(nil), anyHeads[t]...)
	value = protowire.AppendBytes(protowire.AppendTag(value, 2, protowire.BytesType), body)
	entry := appendString(nil, 3, name)
	entry = appendString(entry, 1, version)
	entry = protowire.AppendBytes(protowire.AppendTag(entry, 2, protowire.BytesType), value)
	return protowire.AppendBytes(protowire.AppendTag(nil, responseResources, protowire.BytesType), entry)
}
