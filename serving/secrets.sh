#!/usr/bin/env bash
# Makes secrets/ beside serving/: a certificate authority, TF Serving's own TLS file, and in door/
# what Envoy is given: a certificate and an API key. What is there is kept: a second call
# changes nothing.
#
#     serving/secrets.sh localhost models.example.com    # the names clients call the door by
set -euo pipefail
umask 077
names=("${@:-localhost}")
cd "$(dirname "$0")/.."
mkdir -p secrets/door
cd secrets

if [ ! -e door/server.pem ]; then
    curve=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
    openssl req -x509 "${curve[@]}" -days 3650 -subj "/CN=tfrec-attn authority" \
        -keyout ca.key -out ca.pem
    alternatives=$(printf ',DNS:%s' "${names[@]}" tfserving)
    openssl req "${curve[@]}" -subj "/CN=${names[0]}" -keyout door/server.key -out server.csr
    openssl x509 -req -days 365 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
        -extfile <(echo "subjectAltName=${alternatives#,}") -out door/server.pem
    rm server.csr
fi

if [ ! -e door/auth.yaml ]; then
    key=$(openssl rand -hex 32)
    cat > door/auth.yaml << YAML
# One line a client: its name is what limits and logs know it by.
version_info: "1"
resources:
  - "@type": type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig
    name: auth
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth
      key_sources: [{header: x-api-key}]
      forwarding: {header: x-client, hide_credentials: true}
      credentials:
        - {client: shop, key: $key}
YAML
fi

# SSLConfig holds the PEM texts themselves, not the names of files.
quoted() { awk '{printf "%s\\n", $0}' "$1"; }
cat > ssl.config << TEXT
server_key: "$(quoted door/server.key)"
server_cert: "$(quoted door/server.pem)"
custom_ca: "$(quoted ca.pem)"
client_verify: true
TEXT
echo "secrets/ has: $(echo * door/*)"
