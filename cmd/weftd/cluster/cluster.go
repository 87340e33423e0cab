package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	admissionclient "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	coreclient "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-mesh/weft/identity"
)

// Cluster is a connection to an API server.
type Cluster struct {
	config    *rest.Config
	http      *http.Client
	core      coreclient.CoreV1Interface
	admission admissionclient.AdmissionregistrationV1Interface
	leases    coordinationclient.CoordinationV1Interface
	metadata  metadata.Interface
}

// Connect uses the current context of a kubeconfig file, or for an empty path the service account
// of the pod that this process runs in. It does not wait for the API server.
func Connect(kubeconfig string) (*Cluster, error) {
	config, err := rest.InClusterConfig()
	if kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("this is not a pod of a cluster: name the cluster with --kubeconfig")
	}
	if err != nil {
		return nil, err
	}
	config.UserAgent = "weftd"
	config.QPS = -1                  // the API server's priority and fairness is the brake
	config.DisableCompression = true // of each event and list: more time on both ends than a cluster's network saves
	h, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	c := &Cluster{config: config, http: h}
	var errs [4]error
	c.core, errs[0] = coreclient.NewForConfigAndClient(config, h)
	c.admission, errs[1] = admissionclient.NewForConfigAndClient(config, h)
	c.leases, errs[2] = coordinationclient.NewForConfigAndClient(config, h)
	c.metadata, errs[3] = metadata.NewForConfigAndClient(metadata.ConfigFor(config), h)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return c, nil
}

// REST is how to reach the API server.
func (c *Cluster) REST() *rest.Config { return rest.CopyConfig(c.config) }

// keysPath is where an API server publishes its token keys (Kubernetes: "Service account issuer discovery").
// The address that the discovery document gives may be one for the world outside; this one always answers here.
const keysPath = "/openid/v1/jwks"

// Keys are the public keys that the API server signs service account tokens with.
func (c *Cluster) Keys(ctx context.Context, log *slog.Logger) (identity.Keys, error) {
	return identity.OpenKeys(ctx, strings.TrimSuffix(c.config.Host, "/")+keysPath, identity.KeyOptions{Client: c.http}, log)
}

// Issuer is the name that the API server gives itself in tokens. It waits for the API server until ctx ends.
func (c *Cluster) Issuer(ctx context.Context, log *slog.Logger) (string, error) {
	var issuer string
	err := retry(ctx, log, "read the token issuer of the API server", func() (err error) {
		issuer, err = c.issuer(ctx)
		return err
	})
	return issuer, err
}

func (c *Cluster) issuer(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.config.Host, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return "", err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: status %s (the ClusterRole system:service-account-issuer-discovery permits it)", request.URL, response.Status)
	}
	var document struct {
		Issuer string `json:"issuer"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&document); err != nil || document.Issuer == "" {
		return "", fmt.Errorf("GET %s: no issuer in the answer: name it with --token-issuer", request.URL)
	}
	return document.Issuer, nil
}

// retry calls do until it succeeds or ctx ends. A control plane that starts while the API
// server is away waits for it, and says what for.
func retry(ctx context.Context, log *slog.Logger, what string, do func() error) error {
	said := ""
	for pause := 200 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := do()
		if err == nil {
			return nil
		}
		if err.Error() != said {
			said = err.Error()
			log.Warn("cannot "+what+"; trying again", "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(pause):
		}
	}
}
