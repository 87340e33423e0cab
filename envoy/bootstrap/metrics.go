package bootstrap

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// Prometheus cannot ask the app under STRICT mTLS, so it asks the proxy, which answers with its own metrics and the app's
// (Istio: metrics merging). Stock Envoy can do that in Lua. Two calls and a response are the only form that never
// loses the app's part silently; Envoy refuses answers above 32 MiB, and then the metrics say so.
const appMetricsCluster = "app-metrics"

const mergeLua = `
local function get(h, cluster, path, accept)
  local headers, body = h:httpCall(cluster, {[":method"]="GET", [":path"]=path, [":authority"]="localhost", ["accept"]=accept}, nil, 10000)
  if headers and headers[":status"] == "200" then return body or "" end
  return nil, headers and headers[":status"] or "no answer"
end
function envoy_on_request(h)
  local accept = "text/plain;version=0.0.4"
  local own, e1 = get(h, "` + adminCluster + `", "` + MetricsPath + `", accept)
  local app, e2 = get(h, "` + appMetricsCluster + `", @lua-path@, accept)
  local out = own or ("# the proxy's metrics are missing: " .. e1 .. "\n")
  if app then
    out = out .. "\n" .. string.gsub(app, "# EOF%s*$", "")
  else
    out = out .. "\n# the app's metrics are missing: " .. e2 .. "\n"
  end
  h:respond({[":status"]="200", ["content-type"]="text/plain; version=0.0.4; charset=utf-8"}, out)
end`

func mergeFilter() (fragment, error) {
	return compile(&hcmv3.HttpFilter{Name: "envoy.filters.http.lua", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(&luav3.Lua{})}})
}

func mergeRoute() (fragment, error) {
	r := metricsRoute()
	r.TypedPerFilterConfig = map[string]*anypb.Any{"envoy.filters.http.lua": pack(&luav3.LuaPerRoute{
		Override: &luav3.LuaPerRoute_SourceCode{SourceCode: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: dollars(mergeLua)}}},
	})}
	return compile(r, "@lua-path@")
}

// luaString writes s as a Lua string inside a JSON string: every byte that means anything to either is a decimal escape.
func luaString(s string) []byte {
	var out strings.Builder
	out.WriteString(`\"`)
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("/-_.~?&=+%", c) >= 0:
			out.WriteByte(c)
		default:
			out.WriteString(`\\`)
			out.WriteByte('0' + c/100)
			out.WriteByte('0' + c/10%10)
			out.WriteByte('0' + c%10)
		}
	}
	out.WriteString(`\"`)
	return []byte(out.String())
}
