package node_test

import (
	"errors"
	"strings"
	"testing"

	"creto.dev/fault"
	"creto.dev/node"
)

// TestProviderKinds holds what each kind of provider wants, and that it says so
// at the key.
func TestProviderKinds(t *testing.T) {
	const (
		azure = "kind = \"azure\"\nbase_url = \"https://x.openai.azure.com\"\n"
		entra = "azure.client_id = \"c\"\nazure.client_secret = \"${SECRET}\"\n"
		at    = "inference.providers[0]."

		vertex  = "kind = \"vertex\"\nvertex.project = \"shop-1\"\nvertex.location = \"global\"\n"
		bedrock = "kind = \"bedrock\"\nbedrock.region = \"eu-central-1\"\n"
	)
	for _, tt := range []struct {
		name, doc string
		want      []string // problems, without their places; none if it is right
	}{
		{"azure with a key", azure + "api_key = \"${SECRET}\"\nazure.deployments = {\"gpt-4o\" = \"prod-4o\", gpt = \"b\"}\nazure.api_version = \"2025-04-01-preview\"", nil},
		{"azure with entra", azure + entra + "azure.tenant_id = \"t\"", nil},
		{"azure with its own cloud", azure + entra + "azure.token_url = \"https://login.microsoftonline.us/t/oauth2/v2.0/token\"\nazure.token_scope = \"s\"", nil},
		{"azure as a table", azure + "api_key = \"${SECRET}\"\n[inference.providers.azure]\napi_version = \"v1\"\n[inference.providers.azure.deployments]\n\"gpt-4o\" = \"a\"", nil},
		{"azure without", azure, []string{at + "api_key: required, or an application of Entra ID in azure"}},
		{"azure with both", azure + entra + "azure.tenant_id = \"t\"\napi_key = \"${SECRET}\"", []string{at + "api_key: not beside an application of Entra ID"}},
		{"azure with half", azure + "azure.tenant_id = \"a/b\"\nazure.token_scope = \"s\"", []string{
			at + "azure.client_id: required for an application of Entra ID", at + "azure.client_secret: required for an application of Entra ID",
			at + "azure.tenant_id: required for an application of Entra ID, unless token_url is there",
		}},
		{"azure in the clear", azure + entra + "azure.token_url = \"http://login.example/token\"", []string{at + "azure.token_url: this would send credentials over http in the clear; use https"}},
		{"azure of odd names", azure + "api_key = \"${SECRET}\"\nazure.api_version = \"latest\"\nazure.deployments = {a = \"../b\"}", []string{
			at + `azure.api_version: "latest" is neither v1 nor a date such as 2024-10-21`, at + `azure.deployments: "../b" is no name of a deployment`,
		}},
		{"bedrock with keys", bedrock + "bedrock.access_key_id = \"A\"\nbedrock.secret_access_key = \"${SECRET}\"\nbedrock.session_token = \"${SECRET}\"", nil},
		{"bedrock with its own key", bedrock + "api_key = \"${SECRET}\"\nbase_url = \"https://vpce.example\"\nbedrock.guardrail_id = \"g\"\nbedrock.guardrail_version = \"1\"", nil},
		{"bedrock with a profile", bedrock + "bedrock.profile = \"shop\"", nil},
		{"bedrock with the chain", bedrock + "bedrock.default_chain = true", nil},
		{"bedrock without", "kind = \"bedrock\"", []string{
			at + `bedrock.region: "" is no region, such as eu-central-1`, at + "bedrock: one of api_key, access_key_id, profile and default_chain is required; there are 0",
		}},
		{"bedrock with two", bedrock + "api_key = \"${SECRET}\"\nbedrock.profile = \"shop\"", []string{at + "bedrock: one of api_key, access_key_id, profile and default_chain is required; there are 2"}},
		{"bedrock with half", bedrock + "bedrock.access_key_id = \"A\"\nbedrock.guardrail_id = \"g\"", []string{
			at + "bedrock.secret_access_key: required beside access_key_id", at + "bedrock.guardrail_id: belongs together with guardrail_version",
		}},
		{"bedrock with the other half", bedrock + "api_key = \"${SECRET}\"\nbedrock.session_token = \"${SECRET}\"", []string{at + "bedrock.access_key_id: required beside its secrets"}},
		{"bedrock for others", "base_url = \"https://x/v1\"\nbedrock.region = \"eu-central-1\"", []string{at + `bedrock: only for kind "bedrock"`}},
		{"vertex with an account", vertex + "vertex.service_account = \"${SECRET}\"\nvertex.token_url = \"https://oauth2.example/token\"", nil},
		{"vertex with a file", vertex + "vertex.service_account_file = \"/etc/creto/google.json\"", nil},
		{"vertex with a key", "kind = \"vertex\"\napi_key = \"${SECRET}\"", nil},
		{"vertex without", "kind = \"vertex\"", []string{at + "vertex.service_account: required, or an api_key"}},
		{"vertex with both", vertex + "api_key = \"${SECRET}\"\nvertex.service_account = \"${SECRET}\"", []string{at + "api_key: not beside a service account"}},
		{"vertex with two accounts", vertex + "vertex.service_account_file = \"/x\"\nvertex.service_account = \"${SECRET}\"", []string{at + "vertex.service_account: not beside service_account_file"}},
		{"vertex of odd names", "kind = \"vertex\"\nvertex.service_account = \"${SECRET}\"\nvertex.project = \"../p\"", []string{
			at + `vertex.project: "../p" is none; project and location are required with a service account`, at + `vertex.location: "" is none; project and location are required with a service account`,
		}},
		{"vertex in the clear", vertex + "vertex.service_account = \"${SECRET}\"\nvertex.token_url = \"http://oauth2.example/token\"", []string{at + "vertex.token_url: this would send credentials over http in the clear; use https"}},
		{"vertex for others", "base_url = \"https://x/v1\"\nvertex.project = \"p\"", []string{at + `vertex: only for kind "vertex"`}},
		{"ollama", "kind = \"ollama\"\nbase_url = \"http://localhost:11434\"\nlocal = true", nil},
		{"ollama without", "kind = \"ollama\"", []string{at + "base_url: an address is required, such as https://api.openai.com/v1"}},
		{"azure for others", "base_url = \"https://x/v1\"\nazure.api_version = \"v1\"", []string{at + `azure: only for kind "azure"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := node.ParseConfig("c.toml", []byte("[[inference.providers]]\nname = \"p\"\n"+tt.doc), env("SECRET", planted))
			if (err != nil) != (tt.want != nil) || err != nil && !errors.Is(err, fault.InvalidArgument) {
				t.Fatalf("error = %v, want %q", err, tt.want)
			}
			if err == nil {
				return
			}
			message := fault.Message(err)
			for _, want := range tt.want {
				if !strings.Contains(message, ": "+want) {
					t.Errorf("%s\nlacks %q", message, want)
				}
			}
			if n := strings.Count(message, "\n") + 1; n != len(tt.want) || strings.Contains(message, planted) {
				t.Errorf("%d problems, want %d, and no secret:\n%s", n, len(tt.want), message)
			}
		})
	}
}
