package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Caller is a pod, as its service account token describes it. It is the only
// source of a proxy's identity.
type Caller struct {
	Namespace      string
	ServiceAccount string
	Pod            string
	PodUID         string
	Node           string    // empty before Kubernetes 1.32
	Expires        time.Time // of the token
}

// ErrToken: the token does not prove an identity. Its text says why, without the token.
var ErrToken = errors.New("token refused")

// ErrKeys: the token could not be checked because the keys of its issuer are not
// available; trying again later may help.
var ErrKeys = errors.New("the issuer's keys are not available")

// skew is by how much the clocks of the API server and of this machine may differ
// when a token is said to begin in the future. Expiry gets no such grace.
const skew = 10 * time.Second

// maxToken bounds what is parsed: tokens of the API server have about 1.2 KB.
const maxToken = 16 << 10

// algorithms are those that a Kubernetes API server can sign with
// (--service-account-signing-key-file: RSA or ECDSA). Symmetric ones and "none" are not among them.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512}

// Keys finds the public keys that an issuer signs with.
type Keys interface {
	// Key returns the keys with this ID; all keys for an empty one. No key and no
	// error means that the issuer has none.
	Key(ctx context.Context, id string) ([]jose.JSONWebKey, error)
}

// Verifier checks projected service account tokens (Kubernetes: "Bound service
// account tokens") with the issuer's public keys, without asking the API server.
type Verifier struct {
	Keys     Keys
	Issuer   string // claim iss, exactly
	Audience string // must be among claim aud
	Now      func() time.Time
}

// claims is the part of a bound token that identity depends on.
type claims struct {
	Issuer     string           `json:"iss"`
	Subject    string           `json:"sub"`
	Audience   jwt.Audience     `json:"aud"`
	Expiry     *jwt.NumericDate `json:"exp"`
	NotBefore  *jwt.NumericDate `json:"nbf"`
	IssuedAt   *jwt.NumericDate `json:"iat"`
	Kubernetes *struct {
		Namespace      string `json:"namespace"`
		ServiceAccount object `json:"serviceaccount"`
		Pod            object `json:"pod"`
		Node           object `json:"node"`
	} `json:"kubernetes.io"`
}

type object struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

// Verify checks signature, issuer, audience and times, and returns the pod the
// token is bound to. Errors wrap ErrToken or ErrKeys.
func (v *Verifier) Verify(ctx context.Context, token string) (Caller, error) {
	if token == "" {
		return Caller{}, refuse("it is empty")
	}
	if len(token) > maxToken {
		return Caller{}, refuse("it has more than %d bytes", maxToken)
	}
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		// The library's text may quote what it could not parse; it is not repeated here.
		return Caller{}, refuse("it is not a JWT in compact form, signed by RSA or ECDSA")
	}
	payload, err := v.signature(ctx, signed)
	if err != nil {
		return Caller{}, err
	}
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return Caller{}, refuse("its claims are not what Kubernetes writes")
	}
	return v.caller(c)
}

func (v *Verifier) signature(ctx context.Context, signed *jose.JSONWebSignature) ([]byte, error) {
	id := signed.Signatures[0].Protected.KeyID
	keys, err := v.Keys.Key(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeys, err)
	}
	if len(keys) == 0 {
		return nil, refuse("it was signed with key %.40q, which the issuer does not publish", id)
	}
	for _, k := range keys {
		if payload, err := signed.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	return nil, refuse("its signature is wrong")
}

func (v *Verifier) caller(c claims) (Caller, error) {
	now := time.Now
	if v.Now != nil {
		now = v.Now
	}
	switch at := now(); {
	case c.Issuer != v.Issuer:
		return Caller{}, refuse("its issuer is %.100q, want %q", c.Issuer, v.Issuer)
	case !slices.Contains(c.Audience, v.Audience):
		return Caller{}, refuse("its audience is %.100q, want %q", []string(c.Audience), v.Audience)
	case c.Expiry == nil:
		return Caller{}, refuse("it has no expiry")
	case !at.Before(c.Expiry.Time()):
		return Caller{}, refuse("it expired at %s", c.Expiry.Time().UTC().Format(time.RFC3339))
	case c.NotBefore != nil && at.Add(skew).Before(c.NotBefore.Time()):
		return Caller{}, refuse("it is valid only from %s on", c.NotBefore.Time().UTC().Format(time.RFC3339))
	case c.IssuedAt != nil && at.Add(skew).Before(c.IssuedAt.Time()):
		return Caller{}, refuse("it was issued in the future, at %s", c.IssuedAt.Time().UTC().Format(time.RFC3339))
	case c.Kubernetes == nil:
		return Caller{}, refuse("it has no kubernetes.io claim: it is not a projected service account token")
	}
	k := c.Kubernetes
	switch {
	case k.Namespace == "" || k.ServiceAccount.Name == "":
		return Caller{}, refuse("its kubernetes.io claim lacks the namespace or the service account")
	case k.Pod.Name == "" || k.Pod.UID == "":
		return Caller{}, refuse("it is not bound to a pod; mount it as a projected serviceAccountToken volume")
	case c.Subject != strings.Join([]string{"system:serviceaccount", k.Namespace, k.ServiceAccount.Name}, ":"):
		return Caller{}, refuse("its subject contradicts its kubernetes.io claim")
	}
	return Caller{
		Namespace:      k.Namespace,
		ServiceAccount: k.ServiceAccount.Name,
		Pod:            k.Pod.Name,
		PodUID:         k.Pod.UID,
		Node:           k.Node.Name,
		Expires:        c.Expiry.Time(),
	}, nil
}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrToken}, args...)...)
}
