package manifest

import "k8s.io/apimachinery/pkg/runtime"

func validate(o runtime.Object) []mistake { return nil }
