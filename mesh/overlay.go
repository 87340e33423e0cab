package mesh

import "google.golang.org/protobuf/reflect/protoreflect"

// overlay copies onto dst the fields of src that raw, the JSON src was decoded from, mentions: so that an
// explicit false or 0 replaces a default of true, which proto.Merge cannot do. Messages are
// merged, maps are merged by key, lists are replaced.
func overlay(dst, src protoreflect.Message, raw map[string]any) {
	fields := src.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		value, ok := raw[f.JSONName()]
		if !ok {
			value, ok = raw[string(f.Name())]
		}
		if !ok {
			continue
		}
		sub, isObject := value.(map[string]any)
		switch {
		case f.IsMap():
			if src.Has(f) {
				m := dst.Mutable(f).Map()
				src.Get(f).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
					m.Set(k, v)
					return true
				})
			}
		case !f.IsList() && f.Message() != nil && isObject && f.Message().FullName().Parent() != "google.protobuf" && src.Has(f):
			overlay(dst.Mutable(f).Message(), src.Get(f).Message(), sub)
		case src.Has(f):
			dst.Set(f, src.Get(f))
		default:
			dst.Clear(f)
		}
	}
}
