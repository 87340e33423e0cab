package install

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is an API server that we may change.
type Cluster struct {
	kubernetes.Interface
	Dynamic   dynamic.Interface
	config    *rest.Config
	loader    clientcmd.ClientConfig
	discovery discovery.CachedDiscoveryInterface
	mapper    *restmapper.DeferredDiscoveryRESTMapper
}

// Target says which cluster is meant: a kubeconfig file and a context of it, both as kubectl takes them.
type Target struct{ Kubeconfig, Context string }

// Connect prepares the clients; nothing is asked yet.
func Connect(t Target) (*Cluster, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = t.Kubeconfig
	overrides := &clientcmd.ConfigOverrides{CurrentContext: t.Context}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	config, err := loader.ClientConfig()
	if err != nil {
		if clientcmd.IsEmptyConfig(err) {
			return nil, errors.New("no cluster is configured: name a kubeconfig with --kubeconfig or $KUBECONFIG")
		}
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	return connect(config, loader)
}

// ConnectTo is Connect for a configuration that is there already.
func ConnectTo(config *rest.Config) (*Cluster, error) {
	return connect(config, clientcmd.NewDefaultClientConfig(*clientcmdConfig(config), &clientcmd.ConfigOverrides{}))
}

func connect(config *rest.Config, loader clientcmd.ClientConfig) (*Cluster, error) {
	config = rest.CopyConfig(config)
	if config.QPS == 0 {
		config.QPS, config.Burst = 50, 100 // an installation is some 60 requests; client-go's 5 a second would be its pace
	}
	config.UserAgent = "weft"
	config.WarningHandler = rest.NoWarnings{}
	set, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	cached := memory.NewMemCacheClient(set.Discovery())
	return &Cluster{
		Interface: set, Dynamic: dyn, config: config, loader: loader,
		discovery: cached, mapper: restmapper.NewDeferredDiscoveryRESTMapper(cached),
	}, nil
}

// Host is the address of the API server.
func (c *Cluster) Host() string { return c.config.Host }

// Forget drops what is known about the API's kinds: there are new ones.
func (c *Cluster) Forget() { c.mapper.Reset() }

// The next four methods make it what Helm asks clusters of (genericclioptions.RESTClientGetter).

// ToRESTConfig returns a copy.
func (c *Cluster) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(c.config), nil }

// ToDiscoveryClient returns one that remembers in memory only: a disk cache, as kubectl has, would not know our CRDs.
func (c *Cluster) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return c.discovery, nil
}

// ToRESTMapper returns one over the same cache.
func (c *Cluster) ToRESTMapper() (meta.RESTMapper, error) { return c.mapper, nil }

// ToRawKubeConfigLoader returns what the cluster was configured from.
func (c *Cluster) ToRawKubeConfigLoader() clientcmd.ClientConfig { return c.loader }

// Reachable says why the API server does not answer, in words for the user.
func (c *Cluster) Reachable() error {
	_, err := c.Discovery().ServerVersion()
	return c.unreachable(err)
}

// unreachable words the errors of a connection; others stay what they are.
func (c *Cluster) unreachable(err error) error {
	var network net.Error
	var at *url.Error
	switch {
	case err == nil:
		return nil
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server at %s does not know who you are (401): log in again, or name another kubeconfig or --context", c.config.Host)
	case errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("the API server at %s does not answer: %w; is the cluster up, and the right --context chosen?", c.config.Host, err)
	case errors.As(err, &at):
		return fmt.Errorf("the API server at %s cannot be reached: %w; is the cluster up, and the right --context chosen?", c.config.Host, at.Err)
	}
	return err
}

// patience with single requests.
const requestTimeout = 30 * time.Second
