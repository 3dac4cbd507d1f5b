// An authorization server of oidc-provider (npm), on TLS, for `tests/integration/token_server.py`.
//   node server.mjs NODE_MODULES < settings.json
// Settings: key, certificate, clientAuthorities (PEM), clients (as registered), seconds (life of access tokens, by client).
// Writes one line of JSON when it listens, with a refresh token for each client that may trade one, as if a user had
// consented; then one for each request for a token that ends. It ends when its input does.
import { once } from "node:events";
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { join } from "node:path";

console.info = console.error; // its notices, which would come between what we tell
const { default: Provider } = await import(pathToFileURL(join(process.argv[2], "oidc-provider/lib/index.js")));
const input = createInterface({ input: process.stdin });
const [line] = await once(input, "line");
const settings = JSON.parse(line);
const tell = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const life = (_ctx, _token, client) => settings.seconds[client.clientId] ?? 3600;

let handle;
const options = { key: settings.key, cert: settings.certificate, ca: settings.clientAuthorities };
const server = createServer({ ...options, requestCert: true, rejectUnauthorized: false }, (...given) => handle(...given));
server.listen(0, "127.0.0.1");
await once(server, "listening");
const { port } = server.address();

const peer = (ctx) => ctx.socket.getPeerX509Certificate?.();
const provider = new Provider(`https://127.0.0.1:${port}`, {
  clients: settings.clients,
  scopes: ["openid", "offline_access", "notificaties.ontvangen"],
  clientAuthMethods: ["client_secret_basic", "client_secret_post", "private_key_jwt", "tls_client_auth", "none"],
  rotateRefreshToken: true,
  findAccount: (_ctx, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
  ttl: { AccessToken: life, ClientCredentials: life, RefreshToken: 3600, Grant: 3600 },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      getCertificate: (ctx) => peer(ctx)?.toString(),
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === "tls_client_auth_subject_dn" && peer(ctx).subject.split("\n").join(",") === expected,
    },
  },
});
const asked = (ctx) => ({ client: ctx.oidc?.client?.clientId, grant: ctx.oidc?.params?.grant_type });
provider.on("grant.success", (ctx) => tell(asked(ctx)));
provider.on("grant.error", (ctx, error) => tell({ ...asked(ctx), error: error.error, detail: error.error_detail }));
provider.on("server_error", (_ctx, error) => console.error(error));
handle = provider.callback();

const accountId = "999912345";
const refreshTokens = {};
for (const { client_id: clientId, grant_types: types } of settings.clients) {
  if (!types.includes("refresh_token")) continue;
  const scope = "openid offline_access";
  const grant = new provider.Grant({ accountId, clientId });
  grant.addOIDCScope(scope);
  const grantId = await grant.save();
  const client = await provider.Client.find(clientId);
  const token = new provider.RefreshToken({ accountId, client, grantId, scope, gty: "authorization_code" });
  refreshTokens[clientId] = await token.save();
}
tell({ port, refreshTokens });
await once(input, "close");
process.exit(0);
