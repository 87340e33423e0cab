package webhook

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy/release"
	"github.com/weft-mesh/weft/redirect"
)

// injectorValues is what is used of the key "values" of ConfigMap istio-sidecar-injector: Helm values under Istio's names.
type injectorValues struct {
	Revision string `json:"revision"`
	Global   struct {
		Hub              string            `json:"hub"`
		Tag              any               `json:"tag"` // Helm lets a number through
		ImagePullPolicy  corev1.PullPolicy `json:"imagePullPolicy"`
		ImagePullSecrets []string          `json:"imagePullSecrets"`
		Network          string            `json:"network"`
		MultiCluster     struct {
			ClusterName string `json:"clusterName"`
		} `json:"multiCluster"`
		Proxy struct {
			Image                string                       `json:"image"`
			ClusterDomain        string                       `json:"clusterDomain"`
			LogLevel             string                       `json:"logLevel"`
			ComponentLogLevel    string                       `json:"componentLogLevel"`
			StartGate            StartGate                    `json:"startGate"`
			Resources            *corev1.ResourceRequirements `json:"resources"`
			IncludeIPRanges      *string                      `json:"includeIPRanges"`
			ExcludeIPRanges      string                       `json:"excludeIPRanges"`
			IncludeInboundPorts  *string                      `json:"includeInboundPorts"`
			ExcludeInboundPorts  string                       `json:"excludeInboundPorts"`
			IncludeOutboundPorts string                       `json:"includeOutboundPorts"`
			ExcludeOutboundPorts string                       `json:"excludeOutboundPorts"`
		} `json:"proxy"`
	} `json:"global"`
}

// injectorConfig is what is used of the key "config" of ConfigMap istio-sidecar-injector.
type injectorConfig struct {
	Policy           Policy                 `json:"policy"`
	AlwaysInject     []metav1.LabelSelector `json:"alwaysInjectSelector"`
	NeverInject      []metav1.LabelSelector `json:"neverInjectSelector"`
	DefaultTemplates []string               `json:"defaultTemplates"`
	Templates        map[string]string      `json:"templates"`
}

// ReadOptions adds to base what the two keys of ConfigMap istio-sidecar-injector say: "values", JSON or YAML with Helm values, and
// "config", YAML. What base sets already stays: flags win. The error names the key and the value at fault.
func ReadOptions(base Options, values, config []byte) (Options, error) {
	var v injectorValues
	if err := yaml.Unmarshal(values, &v); err != nil {
		return Options{}, fmt.Errorf("values: %w", err)
	}
	var c injectorConfig
	if err := yaml.Unmarshal(config, &c); err != nil {
		return Options{}, fmt.Errorf("config: %w", err)
	}
	o, g := base, v.Global
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	image, err := proxyImage(g.Hub, g.Tag, g.Proxy.Image)
	if err != nil {
		return Options{}, fmt.Errorf("values: global.proxy.image: %w", err)
	}
	set(&o.ProxyImage, image)
	set((*string)(&o.StartGate), string(g.Proxy.StartGate))
	set(&o.ClusterID, g.MultiCluster.ClusterName)
	set(&o.Network, g.Network)
	set(&o.ClusterDomain, g.Proxy.ClusterDomain)
	set(&o.LogLevel, g.Proxy.LogLevel)
	set(&o.ComponentLog, g.Proxy.ComponentLogLevel)
	switch g.ImagePullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
		set((*string)(&o.ImagePullPolicy), string(g.ImagePullPolicy))
	default:
		return Options{}, fmt.Errorf("values: global.imagePullPolicy: %q: want Always, IfNotPresent or Never", g.ImagePullPolicy)
	}
	if o.ImagePullSecrets == nil {
		o.ImagePullSecrets = g.ImagePullSecrets
	}
	if o.Resources == nil {
		o.Resources = g.Proxy.Resources
	}
	if o.Redirect == nil {
		if o.Redirect, err = v.redirect(); err != nil {
			return Options{}, err
		}
	}
	set((*string)(&o.Policy), string(c.Policy))
	o.AlwaysInject = append(o.AlwaysInject, c.AlwaysInject...)
	o.NeverInject = append(o.NeverInject, c.NeverInject...)
	if len(o.DefaultTemplates) == 0 {
		o.DefaultTemplates = c.DefaultTemplates
	}
	if len(c.Templates) > 0 {
		o.Templates = make(map[string][]byte, len(c.Templates))
		for name, text := range c.Templates {
			o.Templates[name] = []byte(text)
		}
	}
	return o, nil
}

// proxyImage is the image of global.proxy.image: a full reference when it has a slash. Istio's own proxy is none that could be used here.
func proxyImage(hub string, tag any, image string) (string, error) {
	switch {
	case image == "" || image == "auto" || image == "proxyv2":
		return "", nil
	case !strings.Contains(image, "/"):
		image = hub + "/" + image + ":" + tagOf(tag)
	}
	return parseImage(image)
}

func tagOf(tag any) string {
	if text := fmt.Sprint(tag); tag != nil && text != "" {
		return text
	}
	return release.Version()
}

// redirect is what the values say about all pods, in the words of the annotations by which a pod says otherwise.
func (v *injectorValues) redirect() (*redirect.Spec, error) {
	p := v.Global.Proxy
	as := map[string]string{}
	var words []string // in a message: the annotation's name, and what it is called here
	name := func(annotation, name string) {
		words = append(words, "annotation "+annotation+":", "values: global.proxy."+name+":")
	}
	for _, x := range []struct{ annotation, name, value string }{
		{redirect.AnnotationExcludeOutboundCIDRs, "excludeIPRanges", p.ExcludeIPRanges},
		{redirect.AnnotationExcludeInboundPorts, "excludeInboundPorts", p.ExcludeInboundPorts},
		{redirect.AnnotationIncludeOutboundPorts, "includeOutboundPorts", p.IncludeOutboundPorts},
		{redirect.AnnotationExcludeOutboundPorts, "excludeOutboundPorts", p.ExcludeOutboundPorts},
	} {
		name(x.annotation, x.name)
		if x.value != "" {
			as[x.annotation] = x.value
		}
	}
	for _, x := range []struct {
		annotation, name string
		value            *string
	}{
		{redirect.AnnotationIncludeOutboundCIDRs, "includeIPRanges", p.IncludeIPRanges},
		{redirect.AnnotationIncludeInboundPorts, "includeInboundPorts", p.IncludeInboundPorts},
	} {
		name(x.annotation, x.name)
		if x.value != nil {
			as[x.annotation] = *x.value
		}
	}
	spec, err := redirect.FromAnnotations(redirect.Default(), as)
	if err != nil {
		return nil, errors.New(strings.NewReplacer(words...).Replace(err.Error()))
	}
	return &spec, nil
}

// Reload puts other options in force. The error names the option at fault; then everything stays as it was.
func (s *Server) Reload(o Options) error {
	in, err := NewInjector(o)
	if err != nil {
		return fmt.Errorf("injection: %w", err)
	}
	s.in.Store(in)
	return nil
}
