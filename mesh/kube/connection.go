package kube

import (
	"context"
	"fmt"
	"net/http"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-mesh/weft/mesh/manifest"
)

// connection reads lists, watches, and single definitions. All share one connection.
type connection struct {
	config *rest.Config
	http   *http.Client
	meta   metadata.Interface
	codecs lenientCodecs
}

func connect(c *rest.Config) (*connection, error) {
	c = rest.CopyConfig(c)
	// A handful of watches needs no brake here; the API server has its own (priority and fairness).
	c.QPS = -1
	h, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	m, err := metadata.NewForConfigAndClient(metadata.ConfigFor(c), h)
	if err != nil {
		return nil, fmt.Errorf("API server %s: %w", c.Host, err)
	}
	return &connection{config: c, http: h, meta: m, codecs: lenientCodecs{serializer.NewCodecFactory(manifest.Scheme()).WithoutConversion()}}, nil
}

func (c *connection) rest(gv schema.GroupVersion) (rest.Interface, error) {
	config := rest.CopyConfig(c.config)
	config.GroupVersion = &gv
	config.APIPath = "/apis"
	if gv.Group == "" {
		config.APIPath = "/api"
	}
	config.NegotiatedSerializer = c.codecs
	if _, custom := customGroups[gv.Group]; custom {
		config.ContentType = runtime.ContentTypeJSON
	} else {
		config.ContentType = runtime.ContentTypeProtobuf
		config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	}
	return rest.RESTClientForConfigAndClient(config, c.http)
}

// customGroups are served as JSON only.
var customGroups = func() map[string]struct{} {
	m := make(map[string]struct{})
	for _, k := range meshKinds {
		m[k.group] = struct{}{}
	}
	return m
}()

func (c *connection) listWatch(k kind) *cache.ListWatch {
	narrow := func(o metav1.ListOptions) metav1.ListOptions { o.FieldSelector = k.fields; return o }
	if k.meta {
		r := c.meta.Resource(k.gvr).Namespace(k.namespace)
		return &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return r.List(ctx, narrow(o))
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return r.Watch(ctx, narrow(o))
			},
		}
	}
	request := func(o metav1.ListOptions) (*rest.Request, error) {
		r, err := c.rest(k.gvr.GroupVersion())
		if err != nil {
			return nil, err
		}
		o = narrow(o)
		return r.Get().NamespaceIfScoped(k.namespace, k.namespace != "").Resource(k.gvr.Resource).VersionedParams(&o, metav1.ParameterCodec), nil
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			r, err := request(o)
			if err != nil {
				return nil, err
			}
			return r.Do(ctx).Get()
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			r, err := request(o)
			if err != nil {
				return nil, err
			}
			return r.Watch(ctx)
		},
	}
}

// served gives the version of a mesh kind that is to be read; empty when none is served.
func (c *connection) served(ctx context.Context, m meshKind) (version string, err error) {
	config := rest.CopyConfig(c.config)
	config.GroupVersion = &apiextensionsv1.SchemeGroupVersion
	config.APIPath = "/apis"
	config.NegotiatedSerializer = definitionCodecs
	config.ContentType = runtime.ContentTypeProtobuf
	r, err := rest.RESTClientForConfigAndClient(config, c.http)
	if err != nil {
		return "", err
	}
	var d apiextensionsv1.CustomResourceDefinition
	if err := r.Get().Resource("customresourcedefinitions").Name(m.definition()).Do(ctx).Into(&d); err != nil {
		return "", err
	}
	established := false
	for _, condition := range d.Status.Conditions {
		if condition.Type == apiextensionsv1.Established {
			established = condition.Status == apiextensionsv1.ConditionTrue
		}
	}
	if !established {
		return "", nil
	}
	for _, want := range m.versions {
		for _, v := range d.Spec.Versions {
			if v.Name == want && v.Served {
				return want, nil
			}
		}
	}
	return "", nil
}

var definitionCodecs = func() runtime.NegotiatedSerializer {
	scheme := runtime.NewScheme()
	if err := apiextensionsv1.AddToScheme(scheme); err != nil {
		panic(err) // two types under one name: impossible in an empty scheme
	}
	return serializer.NewCodecFactory(scheme).WithoutConversion()
}()
